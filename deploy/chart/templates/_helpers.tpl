{{- define "larder.name" -}}
{{ default .Release.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Takes (dict "root" $ "part" "store"). */}}
{{- define "larder.selector" -}}
app.kubernetes.io/name: larder
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "larder.labels" -}}
{{ include "larder.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "larder.image" -}}
{{- $image := index .root.Values.image .part -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end }}
{{- end }}

{{/* The name under which a part is dialled, and that its certificate must hold. */}}
{{- define "larder.host" -}}
{{ include "larder.name" .root }}-{{ .part }}.{{ .root.Release.Namespace }}.svc
{{- end }}

{{/* A tree of values as TOML: what is no table first. Whole numbers stay whole, which Helm would write as 30.0. Takes (dict "tree" "path"). */}}
{{- define "larder.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .tree }}
{{- if kindIs "float64" $value }}
{{ $key }} = {{ if eq $value (floor $value) }}{{ int64 $value }}{{ else }}{{ $value }}{{ end }}
{{- else if not (kindIs "map" $value) }}
{{ $key }} = {{ mustToRawJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .tree }}
{{- if kindIs "map" $value }}
{{- $below := ternary $key (printf "%s.%s" $path $key) (empty $path) }}

[{{ $below }}]
{{- include "larder.toml" (dict "tree" $value "path" $below) }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the chart itself sets for both. */}}
{{- define "larder.ownConfig" -}}
data_dir: /var/lib/larder
server:
  log_format: json
  metrics_address: {{ ternary "0.0.0.0:7430" "" .Values.metrics.enabled | quote }}
  {{- if .Values.tls.enabled }}
  tls:
    cert: /etc/larder/tls/tls.crt
    key: /etc/larder/tls/tls.key
    {{- if .Values.tls.clientCertificates }}
    client_ca: /etc/larder/tls/ca.crt
    {{- end }}
  {{- end }}
  {{- if or (not .Values.tls.enabled) .Values.redis.allowPlaintext }}
  allow_plaintext: true
  {{- end }}
auth:
  tokens_file: /run/larder/tokens
  {{- with .Values.auth.jwks }}
  {{- if .configMap }}
  jwks_file: /etc/larder/jwks/jwks.json
  issuer: {{ .issuer | quote }}
  audience: {{ .audience | quote }}
  tenant_claim: {{ .tenantClaim | quote }}
  role_claim: {{ .roleClaim | quote }}
  {{- end }}
  {{- end }}
{{- end }}

{{- define "larder.storeConfig" -}}
{{- $own := include "larder.ownConfig" . | fromYaml -}}
{{- $lanes := dict "shm" "off" "tcp_port" 7422 -}}
{{- $auth := dict "secret_file" "/run/larder/secret" -}}
{{- $more := dict "server" (dict "address" "0.0.0.0:7420" "lanes" $lanes) "auth" $auth -}}
{{- if .Values.encryption.existingSecret }}{{ $_ := set $more "encryption" (dict "keys_file" "/run/larder/keys") }}{{ end -}}
{{- include "larder.toml" (dict "path" "" "tree" (mergeOverwrite (deepCopy .Values.store.config) $own $more)) | trim }}
{{- end }}

{{- define "larder.workerConfig" -}}
{{- $own := include "larder.ownConfig" . | fromYaml -}}
{{- $hosts := printf "%s:7420" (include "larder.host" (dict "root" . "part" "store")) -}}
{{- $store := dict "address" (ternary (printf "dns:%s" $hosts) $hosts (gt (int .Values.store.replicas) 1)) -}}
{{- if .Values.tls.enabled }}{{ $_ := set $store "ca" "/etc/larder/tls/ca.crt" }}{{ end -}}
{{- if and .Values.tls.enabled .Values.tls.clientCertificates -}}
{{- $_ := mergeOverwrite $store (dict "cert" "/etc/larder/tls/tls.crt" "key" "/etc/larder/tls/tls.key") }}
{{- end -}}
{{- $more := dict "server" (dict "address" "0.0.0.0:7421") "store" $store -}}
{{- if .Values.worker.gpu.count }}{{ $_ := set $more "model" (dict "device" "cuda") }}{{ end -}}
{{- if eq .Values.worker.kind "RayService" }}{{ $_ := set $more "ray" (include "larder.rayServiceConfig" . | fromYaml) }}
{{- else if .Values.worker.ray.enabled }}{{ $_ := set $more "ray" (include "larder.rayConfig" . | fromYaml) }}{{ end -}}
{{- include "larder.toml" (dict "path" "" "tree" (mergeOverwrite (deepCopy .Values.worker.config) $own $more)) | trim }}
{{- end }}

{{/* Actors listen within their pod only, and Ray hides the GPUs that it was not asked for. */}}
{{- define "larder.rayConfig" -}}
host: 127.0.0.1
{{- include "larder.actorConfig" . }}
{{- end }}

{{/* Actors listen on their pods' addresses; each takes the room that its pod has for one, unless it is told to take something else. */}}
{{- define "larder.rayServiceConfig" -}}
{{- $worker := .Values.worker -}}
{{- $given := default dict $worker.config.ray -}}
{{- $perPod := include "larder.actorsPerPod" . | int -}}
start_s: {{ default $worker.startupSeconds $given.start_s }}
workers: {{ default (mul $perPod (ternary $worker.autoscaling.minReplicas $worker.replicas $worker.autoscaling.enabled)) $given.workers }}
{{- if and $worker.autoscaling.enabled (not (hasKey $given "most_workers")) }}
most_workers: {{ mul $perPod $worker.autoscaling.maxReplicas }}
{{- end }}
{{- if not (or (hasKey $given "cpus") (hasKey $given "resources")) }}
cpus: 0
resources: larder-worker=1
{{- end }}
{{- include "larder.actorConfig" . }}
{{- end }}

{{- define "larder.actorConfig" -}}
{{- if .Values.tls.enabled }}
ca: /etc/larder/tls/ca.crt
server_name: {{ include "larder.host" (dict "root" . "part" "worker") }}
{{- end }}
{{- if and .Values.worker.gpu.count (not (hasKey (default dict .Values.worker.config.ray) "gpus")) }}
gpus: 1
{{- end }}
{{- end }}

{{/* Pods of a part as evenly over zones and nodes as may be. */}}
{{- define "larder.spread" -}}
{{- range .root.Values.topologyKeys }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "larder.selector" $ | nindent 6 }}
{{- end }}
{{- end }}

{{/* Seconds from the stop signal to the kill: what leaves the service, what drains, and what is written after that. Takes root, config, after. */}}
{{- define "larder.graceSeconds" -}}
{{- $server := default dict .config.server -}}
{{ add (int .root.Values.preStopSeconds) (ceil (default 30 $server.drain_s) | int) .after }}
{{- end }}

{{- define "larder.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "larder.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The master secret is the store's alone. */}}
{{- define "larder.credentials" -}}
{{ ternary "tokens secret" "tokens" (eq .part "store") }}
{{- end }}

{{/* Whether a part reads the keys of encryption: "true" or nothing. */}}
{{- define "larder.encrypts" -}}
{{- if and (eq .part "store") .root.Values.encryption.existingSecret }}true{{ end -}}
{{- end }}

{{/* Credentials must be readable by their owner only, which a mounted Secret cannot be for a user other than root: copy them. */}}
{{- define "larder.credentialsContainer" -}}
name: credentials
image: {{ include "larder.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command:
  - install
  - --mode=0600
  - --target-directory=/run/larder
  {{- range include "larder.credentials" . | splitList " " }}
  - /etc/larder/auth/{{ . }}
  {{- end }}
  {{- if include "larder.encrypts" . }}
  - /etc/larder/auth/keys
  {{- end }}
securityContext:
  {{- include "larder.containerSecurity" . | nindent 2 }}
resources:
  requests: {cpu: 10m, memory: 16Mi}
  limits: {memory: 64Mi}
volumeMounts:
  - {name: auth, mountPath: /etc/larder/auth, readOnly: true}
  - {name: credentials, mountPath: /run/larder}
{{- end }}

{{- define "larder.mounts" -}}
- {name: config, mountPath: /etc/larder/config, readOnly: true}
- {name: credentials, mountPath: /run/larder, readOnly: true}
- {name: data, mountPath: /var/lib/larder}
- {name: tmp, mountPath: /tmp}
{{- if .root.Values.tls.enabled }}
- {name: tls, mountPath: /etc/larder/tls, readOnly: true}
{{- end }}
{{- if .root.Values.auth.jwks.configMap }}
- {name: jwks, mountPath: /etc/larder/jwks, readOnly: true}
{{- end }}
{{- end }}

{{- define "larder.volumes" -}}
- name: config
  configMap: {name: {{ include "larder.name" .root }}-{{ .part }}}
- name: auth
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ .root.Values.auth.existingSecret }}
          items:
            {{- range include "larder.credentials" . | splitList " " }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
      {{- if include "larder.encrypts" . }}
      - secret:
          name: {{ .root.Values.encryption.existingSecret }}
          items:
            - {key: keys, path: keys}
      {{- end }}
- name: credentials
  emptyDir: {medium: Memory, sizeLimit: 4Mi}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- if .root.Values.tls.enabled }}
- name: tls
  secret: {secretName: {{ .root.Values.tls.existingSecret }}, defaultMode: 0440}
{{- end }}
{{- if .root.Values.auth.jwks.configMap }}
- name: jwks
  configMap: {name: {{ .root.Values.auth.jwks.configMap }}}
{{- end }}
{{- end }}

{{/* Health over gRPC: by the kubelet itself, or, since that speaks no TLS, by the client in the image. Takes root, part, port. */}}
{{- define "larder.check" -}}
{{- if .root.Values.tls.enabled }}
exec:
  command:
    - larder
    - ping
    - --address=127.0.0.1:{{ .port }}
    - --ca=/etc/larder/tls/ca.crt
    {{- if .root.Values.tls.clientCertificates }}
    - --cert=/etc/larder/tls/tls.crt
    - --key=/etc/larder/tls/tls.key
    {{- end }}
    - --server-name={{ include "larder.host" . }}
    - --token=probe
    - --timeout=4
    - --json
{{- else }}
grpc: {port: {{ .port }}}
{{- end }}
timeoutSeconds: 5
{{- end }}

{{/* Takes root, part, port, startupSeconds. */}}
{{- define "larder.probes" -}}
startupProbe:
  {{- include "larder.check" . | trim | nindent 2 }}
  periodSeconds: 5
  failureThreshold: {{ div (add (int .startupSeconds) 4) 5 }}
readinessProbe:
  {{- include "larder.check" . | trim | nindent 2 }}
  periodSeconds: 10
  failureThreshold: 2
livenessProbe:
  {{- include "larder.check" . | trim | nindent 2 }}
  periodSeconds: 30
  failureThreshold: 4
lifecycle:
  preStop:
    sleep: {seconds: {{ .root.Values.preStopSeconds }}}
{{- end }}

{{/* Where spans go. */}}
{{- define "larder.tracing" -}}
{{- with .Values.tracing.endpoint -}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{/* The rule that lets spans out. */}}
{{- define "larder.sendingSpans" -}}
{{- if .Values.tracing.endpoint -}}
- ports:
    - {protocol: TCP, port: {{ .Values.tracing.port }}}
{{- end }}
{{- end }}

{{/* The rule that lets scrapers in, where there are any. */}}
{{- define "larder.scraping" -}}
{{- if and .Values.metrics.enabled .Values.networkPolicy.scrapers -}}
- from:
    {{- toYaml .Values.networkPolicy.scrapers | nindent 4 }}
  ports:
    - {protocol: TCP, port: 7430}
{{- end }}
{{- end }}

{{/* Where a part's pods may run. Takes root, part. */}}
{{- define "larder.placement" -}}
{{- $values := index .root.Values .part -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
