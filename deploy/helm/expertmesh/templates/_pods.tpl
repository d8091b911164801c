{{- define "expertmesh.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{- /* What the coordinator's drain takes, 5 s for callers to read how it ended, and the end of Ray. */ -}}
{{- define "expertmesh.coordinator.grace" -}}
{{- add (ceil .Values.coordinator.withdrawalGrace) (ceil .Values.coordinator.drainTimeout) 25 -}}
{{- end -}}

{{- /* Ray by itself waits up to 30 s for what still runs on a node that ends. */ -}}
{{- define "expertmesh.worker.grace" -}}
{{- add (ceil .Values.workers.leaveTimeout) 45 -}}
{{- end -}}

{{- /* Ray's head in the coordinator's pod. */ -}}
{{- define "expertmesh.head.container" -}}
- name: ray-head
  image: {{ include "expertmesh.image" (dict "image" .Values.image "default" .Values.image) }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if eq .Values.mode "plain" }}
  # A sidecar: it is there before the coordinator starts, and until it has ended.
  restartPolicy: Always
  command: [ray, start, --head, --block]
  args:
    {{- include "expertmesh.ray.options" (include "expertmesh.ray.head" . | fromYaml) | trim | nindent 4 }}
  {{- else }}
  lifecycle:
    preStop:
      exec:
        # The coordinator drains first: its control port is open until it ends.
        command:
          - /bin/bash
          - -c
          - while (exec 3<>/dev/tcp/127.0.0.1/50052) 2>/dev/null; do sleep 1; done
  {{- end }}
  env:
    {{- include "expertmesh.container.env" . | nindent 4 }}
  ports:
    - name: gcs
      containerPort: 6379
    # KubeRay would add a port of this name.
    - name: metrics
      containerPort: 6384
  {{- include "expertmesh.node.probes" 6379 | nindent 2 }}
  resources:
    {{- toYaml .Values.ray.headResources | nindent 4 }}
  securityContext:
    {{- include "expertmesh.container.security" . | nindent 4 }}
  volumeMounts:
    {{- include "expertmesh.container.mounts" . | nindent 4 }}
{{- end -}}

{{- define "expertmesh.coordinator.pod" -}}
metadata:
  labels:
    {{- include "expertmesh.selector" . | nindent 4 }}
    app.kubernetes.io/component: coordinator
spec:
  {{- include "expertmesh.pod.common" . | nindent 2 }}
  # Ray looks at the processes of a node by their numbers.
  shareProcessNamespace: true
  terminationGracePeriodSeconds: {{ include "expertmesh.coordinator.grace" . }}
  {{- include "expertmesh.placement" .Values.coordinator | trim | nindent 2 }}
  {{- if eq .Values.mode "plain" }}
  initContainers:
    {{- include "expertmesh.head.container" . | nindent 4 }}
  containers:
    {{- include "expertmesh.coordinator.container" . | nindent 4 }}
  {{- else }}
  containers:
    {{- include "expertmesh.head.container" . | nindent 4 }}
    {{- include "expertmesh.coordinator.container" . | nindent 4 }}
  {{- end }}
  volumes:
    {{- include "expertmesh.pod.volumes" . | nindent 4 }}
    {{- include "expertmesh.coordinator.volumes" . | trim | nindent 4 }}
{{- end -}}

{{- define "expertmesh.worker.pod" -}}
metadata:
  labels:
    {{- include "expertmesh.selector" . | nindent 4 }}
    app.kubernetes.io/component: worker
spec:
  {{- include "expertmesh.pod.common" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "expertmesh.worker.grace" . }}
  {{- include "expertmesh.placement" .Values.workers | trim | nindent 2 }}
  # One node of Kubernetes is one failure: it never has two copies of an expert.
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        - topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "expertmesh.selector" . | nindent 14 }}
              app.kubernetes.io/component: worker
  {{- with .Values.workers.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: ray-worker
      image: {{ include "expertmesh.image" (dict "image" .Values.image "default" .Values.image) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- if eq .Values.mode "plain" }}
      # As soon as the head is there; a node that loses it ends, and is started again.
      command:
        - /bin/bash
        - -c
        - until (exec 3<>/dev/tcp/${RAY_ADDRESS/://}) 2>/dev/null; do sleep 1; done; exec ray start --block --address="$RAY_ADDRESS" "$@"
        - ray
      args:
        - --num-cpus=$(CPUS)
        {{- include "expertmesh.ray.options" (include "expertmesh.ray.worker" . | fromYaml) | trim | nindent 8 }}
      {{- end }}
      env:
        {{- include "expertmesh.container.env" . | nindent 8 }}
        {{- if eq .Values.mode "plain" }}
        - name: RAY_ADDRESS
          value: {{ include "expertmesh.name" . }}-ray:6379
        - name: CPUS
          valueFrom:
            resourceFieldRef:
              resource: limits.cpu
        {{- end }}
        {{- with .Values.workers.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: ray
          containerPort: 6381
        - name: metrics
          containerPort: 6384
      lifecycle:
        preStop:
          exec:
            command: [expertmesh, leave, --timeout={{ .Values.workers.leaveTimeout }}]
      {{- include "expertmesh.node.probes" 6381 | nindent 6 }}
      resources:
        {{- toYaml .Values.workers.resources | nindent 8 }}
      securityContext:
        {{- include "expertmesh.container.security" . | nindent 8 }}
      volumeMounts:
        {{- include "expertmesh.container.mounts" . | nindent 8 }}
        {{- if .Values.model.onWorkers }}
        {{- include "expertmesh.model.mount" . | trim | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "expertmesh.pod.volumes" . | nindent 4 }}
    {{- if .Values.model.onWorkers }}
    {{- include "expertmesh.model.volume" . | trim | nindent 4 }}
    {{- end }}
{{- end -}}
