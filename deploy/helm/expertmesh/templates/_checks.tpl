{{- /* What the schema cannot say: values that do not go together end the rendering, in one line each. */ -}}
{{- define "expertmesh.checks" -}}
{{- if not (regexMatch "^[a-z]" .Release.Name) -}}
{{- fail "the release's name begins with a digit, which names of services do not" -}}
{{- end -}}
{{- $plain := eq .Values.mode "plain" -}}
{{- if and (not .Values.insecure) (or (not .Values.secrets.tls) (not .Values.secrets.apiKeys)) -}}
{{- fail "secrets.tls and secrets.apiKeys: other pods can reach the coordinator; name both, or say insecure: true" -}}
{{- end -}}
{{- if and .Values.secrets.clientCa (not .Values.secrets.tls) -}}
{{- fail "secrets.clientCa: needs secrets.tls" -}}
{{- end -}}
{{- if and $plain .Values.ray.mtls -}}
{{- fail "ray.mtls: only KubeRay makes certificates for pods; use mode: raycluster, or a network that encrypts" -}}
{{- end -}}
{{- if and $plain (ne .Values.gcsFaultTolerance.backend "none") -}}
{{- fail "gcsFaultTolerance.backend: is KubeRay's; use mode: raycluster" -}}
{{- end -}}
{{- if and (eq .Values.gcsFaultTolerance.backend "redis") (not .Values.gcsFaultTolerance.redisAddress) -}}
{{- fail "gcsFaultTolerance.redisAddress: say where Redis is, HOST:PORT" -}}
{{- end -}}
{{- if and (hasPrefix "/" .Values.model.source) (not .Values.model.volume) -}}
{{- fail "model.volume: a folder is on a volume; say which" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not (hasPrefix "/" .Values.model.source)) (not .Values.networkPolicy.egress) -}}
{{- fail "networkPolicy.egress: the model is fetched; say from where pods may do so" -}}
{{- end -}}
{{- if gt (int .Values.workers.copies) (int .Values.workers.replicas) -}}
{{- fail "workers.copies: more copies of an expert than workers" -}}
{{- end -}}
{{- if and .Values.monitoring.serviceMonitor .Values.secrets.apiKeys (not .Values.monitoring.apiKeySecret) -}}
{{- fail "monitoring.apiKeySecret: metrics need an API key; name a secret that has one" -}}
{{- end -}}
{{- if and .Values.monitoring.serviceMonitor .Values.secrets.tls (not (and .Values.monitoring.caSecret .Values.monitoring.serverName)) -}}
{{- fail "monitoring.caSecret and monitoring.serverName: without them a scraper shows its key to any server" -}}
{{- end -}}
{{- if and .Values.monitoring.serviceMonitor .Values.secrets.clientCa -}}
{{- fail "monitoring.serviceMonitor: with secrets.clientCa a scraper needs a certificate; scrape by deploy/monitoring instead" -}}
{{- end -}}
{{- end -}}
