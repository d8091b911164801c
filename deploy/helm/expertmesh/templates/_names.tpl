{{- define "expertmesh.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "expertmesh.selector" -}}
app.kubernetes.io/name: expertmesh
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "expertmesh.labels" -}}
{{ include "expertmesh.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- /* Of {image, default}: the first of both that has a repository, by its digest or its tag. */ -}}
{{- define "expertmesh.image" -}}
{{- $image := ternary .image .default (ne .image.repository "") -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ required "image.digest or image.tag says which image" $image.tag }}
{{- end -}}
{{- end -}}
