{{- /* The ports that all kinds of deployment have; deploy/README.md has the table. */ -}}
{{- define "expertmesh.ports.data" -}}20100-20199{{- end -}}

{{- define "expertmesh.ports.ray" -}}
node-ip-address: $(POD_IP)
node-manager-port: "6381"
object-manager-port: "6382"
runtime-env-agent-port: "6383"
metrics-export-port: "6384"
dashboard-agent-grpc-port: "6385"
dashboard-agent-listen-port: "6386"
min-worker-port: "20000"
max-worker-port: "20099"
{{- end -}}

{{- /* Without the autoscaler's monitor, which has a port of its own. Ray Client's, 10001, cannot be turned off: no rule opens it. */ -}}
{{- define "expertmesh.ray.head" -}}
{{ include "expertmesh.ports.ray" . }}
port: "6379"
include-dashboard: "false"
no-monitor: "true"
num-cpus: "0"
num-gpus: "0"
object-store-memory: {{ .Values.ray.objectStoreMemory | int64 | quote }}
{{- end -}}

{{- define "expertmesh.ray.worker" -}}
{{ include "expertmesh.ports.ray" . }}
num-gpus: "0"
object-store-memory: {{ .Values.ray.objectStoreMemory | int64 | quote }}
{{- end -}}

{{- /* Of parameters, as options of `ray start`. */ -}}
{{- define "expertmesh.ray.options" -}}
{{- range $name, $value := . }}
{{- if eq $value "true" }}
- --{{ $name }}
{{- else }}
- --{{ $name }}={{ $value }}
{{- end }}
{{- end }}
{{- end -}}
