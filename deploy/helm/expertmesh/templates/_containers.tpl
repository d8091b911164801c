{{- /* Parts that every container has. */ -}}
{{- define "expertmesh.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "expertmesh.container.env" -}}
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: HOME
  value: /tmp
- name: TMPDIR
  value: /tmp
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN_PATH
  value: /etc/expertmesh/ray/token
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
- name: EXPERTMESH_CACHE
  value: /cache
{{- with .Values.cache.bytes }}
- name: EXPERTMESH_CACHE_BYTES
  value: {{ . | int64 | quote }}
{{- end }}
- name: HF_HOME
  value: /cache/huggingface
- name: EXPERTMESH_DATA_PORTS
  value: {{ include "expertmesh.ports.data" . | quote }}
{{- end -}}

{{- define "expertmesh.container.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
- name: cache
  mountPath: /cache
- name: ray-token
  mountPath: /etc/expertmesh/ray
  readOnly: true
{{- if .Values.secrets.dataTls }}
- name: data-tls
  mountPath: /etc/expertmesh/data-tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "expertmesh.pod.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.ray.tmp }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.ray.shm }}
- name: cache
  {{- with .Values.cache.volume }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.cache.size }}
  {{- end }}
- name: ray-token
  secret:
    secretName: {{ required "secrets.rayToken: the secret with Ray's token, in the key token" .Values.secrets.rayToken }}
    defaultMode: 0440
{{- with .Values.secrets.dataTls }}
- name: data-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "expertmesh.model.mount" -}}
{{- if .Values.model.volume }}
- name: model
  mountPath: {{ .Values.model.mountPath }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "expertmesh.model.volume" -}}
{{- with .Values.model.volume }}
- name: model
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "expertmesh.pod.common" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.podSecurityContext.runAsUser | int64 }}
  runAsGroup: {{ .Values.podSecurityContext.runAsGroup | int64 }}
  fsGroup: {{ .Values.podSecurityContext.fsGroup | int64 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- /* A port says that the process is there; that a node hangs Ray's own head sees. */ -}}
{{- define "expertmesh.node.probes" -}}
startupProbe:
  tcpSocket:
    port: {{ . }}
  periodSeconds: 2
  failureThreshold: 90
livenessProbe:
  tcpSocket:
    port: {{ . }}
  periodSeconds: 10
  failureThreshold: 3
readinessProbe:
  tcpSocket:
    port: {{ . }}
  periodSeconds: 5
{{- end -}}
