{{- define "expertmesh.coordinator.arguments" -}}
- serve
- {{ required "model.source: a folder, ORG/NAME or a URL" .Values.model.source | quote }}
- --ray-address=$(POD_IP):6379
- --workers-per-node=1
- --min-machines={{ .Values.workers.copies | int }}
- --replicas={{ .Values.workers.copies | int }}
- --keep-workers
- --take-over
- --dtype={{ .Values.coordinator.dtype }}
- --grpc-address=0.0.0.0:50051
- --http-address=0.0.0.0:8000
- --control-address=127.0.0.1:50052
- --metrics-address=0.0.0.0:9100
- --health-address=0.0.0.0:50053
- --start-timeout={{ .Values.coordinator.startTimeout }}
- --withdrawal-grace={{ .Values.coordinator.withdrawalGrace }}
- --drain-timeout={{ .Values.coordinator.drainTimeout }}
- --log-format=json
{{- if gt (int .Values.coordinator.gpus) 0 }}
- --device=cuda
{{- end }}
{{- if .Values.secrets.apiKeys }}
- --api-key-file=/etc/expertmesh/keys/keys
{{- end }}
{{- if .Values.secrets.tls }}
- --tls-cert=/etc/expertmesh/tls/tls.crt
- --tls-key=/etc/expertmesh/tls/tls.key
{{- end }}
{{- if .Values.secrets.clientCa }}
- --tls-client-ca=/etc/expertmesh/client-ca/ca.crt
{{- end }}
{{- if .Values.secrets.dataTls }}
- --data-tls-cert=/etc/expertmesh/data-tls/tls.crt
- --data-tls-key=/etc/expertmesh/data-tls/tls.key
- --data-tls-ca=/etc/expertmesh/data-tls/ca.crt
{{- end }}
{{- if .Values.insecure }}
- --insecure
{{- end }}
{{- range .Values.coordinator.args }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "expertmesh.coordinator.container" -}}
- name: coordinator
  image: {{ include "expertmesh.image" (dict "image" .Values.coordinator.image "default" .Values.image) }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if eq .Values.mode "plain" }}
  command: [expertmesh]
  {{- else }}
  # KubeRay's container starts at the same time: Ray may not listen yet.
  command:
    - /bin/bash
    - -c
    - until (exec 3<>/dev/tcp/$POD_IP/6379) 2>/dev/null; do sleep 1; done; exec expertmesh "$@"
    - expertmesh
  {{- end }}
  args:
    {{- include "expertmesh.coordinator.arguments" . | nindent 4 }}
  env:
    {{- include "expertmesh.container.env" . | nindent 4 }}
    {{- if .Values.ray.mtls }}
    # KubeRay sets these in its own container.
    - name: RAY_USE_TLS
      value: "1"
    - name: RAY_TLS_SERVER_CERT
      value: /etc/expertmesh/ray-tls/tls.crt
    - name: RAY_TLS_SERVER_KEY
      value: /etc/expertmesh/ray-tls/tls.key
    - name: RAY_TLS_CA_CERT
      value: /etc/expertmesh/ray-tls/ca.crt
    {{- end }}
    {{- with .Values.coordinator.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - name: grpc
      containerPort: 50051
    - name: http
      containerPort: 8000
    - name: em-metrics
      containerPort: 9100
    # kubelet speaks no TLS here, and has no certificate: this port has health and nothing else.
    - name: health
      containerPort: 50053
  startupProbe:
    grpc:
      port: 50053
      service: liveness
    periodSeconds: 2
    failureThreshold: 90
  livenessProbe:
    grpc:
      port: 50053
      service: liveness
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
  readinessProbe:
    grpc:
      port: 50053
      service: ""
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: 1
  resources:
    requests:
      {{- toYaml .Values.coordinator.resources.requests | nindent 6 }}
    limits:
      {{- toYaml .Values.coordinator.resources.limits | nindent 6 }}
      {{- if gt (int .Values.coordinator.gpus) 0 }}
      {{ .Values.coordinator.gpuResource }}: {{ .Values.coordinator.gpus | int | quote }}
      {{- end }}
  securityContext:
    {{- include "expertmesh.container.security" . | nindent 4 }}
  volumeMounts:
    {{- include "expertmesh.container.mounts" . | nindent 4 }}
    {{- include "expertmesh.model.mount" . | trim | nindent 4 }}
    {{- if .Values.ray.mtls }}
    - name: coordinator-ray-tls
      mountPath: /etc/expertmesh/ray-tls
      readOnly: true
    {{- end }}
    {{- if .Values.secrets.apiKeys }}
    - name: api-keys
      mountPath: /etc/expertmesh/keys
      readOnly: true
    {{- end }}
    {{- if .Values.secrets.tls }}
    - name: tls
      mountPath: /etc/expertmesh/tls
      readOnly: true
    {{- end }}
    {{- if .Values.secrets.clientCa }}
    - name: client-ca
      mountPath: /etc/expertmesh/client-ca
      readOnly: true
    {{- end }}
{{- end -}}

{{- define "expertmesh.coordinator.volumes" -}}
{{ include "expertmesh.model.volume" . }}
{{- if .Values.ray.mtls }}
# What KubeRay has cert-manager write for the head's pod.
- name: coordinator-ray-tls
  secret:
    secretName: ray-head-secret-{{ include "expertmesh.name" . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.secrets.apiKeys }}
- name: api-keys
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.secrets.tls }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.secrets.clientCa }}
- name: client-ca
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}
