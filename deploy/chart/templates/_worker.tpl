{{/* What a worker keeps of its environment: credentials of its own. Takes root. */}}
{{- define "larder.workerEnv" -}}
{{- with .root.Values.worker.tokenSecret }}
- name: LARDER_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: token}
{{- end }}
{{- with .root.Values.catalog.existingSecret }}
- name: LARDER_WORKER__WORKER__CATALOG_URL
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: url}
{{- end }}
{{ include "larder.tracing" .root }}
{{- end }}

{{/* A pod of workers. Takes root, part, serving: the container's own fields, resources, and onRay: whether Ray runs in it. */}}
{{- define "larder.workerPod" -}}
{{- $worker := .root.Values.worker -}}
metadata:
  labels:
    {{- include "larder.labels" . | nindent 4 }}
  annotations:
    checksum/config: {{ include "larder.workerConfig" .root | sha256sum }}
    {{- with $worker.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: {{ default false .callsKubernetes }}
  enableServiceLinks: false
  {{- include "larder.placement" . | trim | nindent 2 }}
  {{- with $worker.gpu.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  topologySpreadConstraints:
    {{- include "larder.spread" . | nindent 4 }}
  securityContext:
    {{- include "larder.podSecurity" . | nindent 4 }}
  # Answers drain, 5 s for threads, and then what is queued is stored. On Ray, actors drain behind the front.
  {{- $draining := default dict $worker.config.server }}
  {{- $after := ternary (add 65 (ceil (default 30 $draining.drain_s) | int)) 65 .onRay }}
  terminationGracePeriodSeconds: {{ include "larder.graceSeconds" (dict "root" .root "config" $worker.config "after" $after) }}
  initContainers:
    - {{- include "larder.credentialsContainer" . | nindent 6 }}
  containers:
    - name: worker
      image: {{ include "larder.image" . }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      securityContext:
        {{- include "larder.containerSecurity" . | nindent 8 }}
      {{- with include "larder.workerEnv" . | trim }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      {{- .serving | trim | nindent 6 }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      volumeMounts:
        {{- include "larder.mounts" . | nindent 8 }}
        {{- if $worker.modelClaim }}
        - {name: models, mountPath: /models, readOnly: true}
        {{- end }}
        {{- if .onRay }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
  volumes:
    {{- include "larder.volumes" . | nindent 4 }}
    - name: data
      {{- if $worker.dataClaim }}
      persistentVolumeClaim: {claimName: {{ $worker.dataClaim }}}
      {{- else }}
      emptyDir: {sizeLimit: {{ $worker.dataSize }}}
      {{- end }}
    {{- with $worker.modelClaim }}
    - name: models
      persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
    {{- end }}
    {{- if .onRay }}
    # Ray's object store, of the least size: nothing of ours goes through it. It counts as the pod's memory.
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: 256Mi}
    {{- end }}
{{- end }}

{{/* The resources of a worker, its GPUs among them. */}}
{{- define "larder.workerResources" -}}
{{- $worker := .Values.worker -}}
{{- $resources := deepCopy $worker.resources }}
{{- if $worker.gpu.count }}
{{- $_ := set $resources "limits" (mergeOverwrite (default dict $resources.limits) (dict $worker.gpu.resource (toString $worker.gpu.count))) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* What callers and scrapers reach. */}}
{{- define "larder.workerPorts" -}}
ports:
  - {name: grpc, containerPort: 7421}
  {{- if .Values.metrics.enabled }}
  - {name: metrics, containerPort: 7430}
  {{- end }}
{{- end }}

{{/* The worker as a process of its own. */}}
{{- define "larder.workerServing" -}}
{{- $worker := .Values.worker -}}
args: [worker, {{ if $worker.ray.enabled }}--ray, {{ end }}--config, /etc/larder/config/worker.toml]
{{ include "larder.workerPorts" . }}
{{ include "larder.probes" (dict "root" . "part" "worker" "port" 7421 "startupSeconds" $worker.startupSeconds) | trim }}
{{- end }}

{{/* How many actors a pod of the RayService has room for: one for each GPU. */}}
{{- define "larder.actorsPerPod" -}}
{{ max 1 (int .Values.worker.gpu.count) }}
{{- end }}

{{/* Resources of a node as `ray start` takes them through KubeRay: JSON in quotes, within quotes. */}}
{{- define "larder.rayResources" -}}
{{ toJson . | quote | squote }}
{{- end }}

{{/* Bytes of Ray's object store, the least that it takes. */}}
{{- define "larder.rayObjects" -}}
"83886080"
{{- end }}

{{/* The head: the front's ports and those that KubeRay's operator calls. */}}
{{- define "larder.rayHead" -}}
{{ include "larder.workerPorts" . }}
  - {name: gcs-server, containerPort: 6379}
  - {name: dashboard, containerPort: 8265}
  - {name: client, containerPort: 10001}
  - {name: serve, containerPort: 8000}
{{ include "larder.rayProbes" (dict "startupSeconds" 120 "preStopSeconds" .Values.preStopSeconds) | trim }}
{{- end }}

{{/* Whether Ray runs in a pod: KubeRay deploys the application only once its head is ready. Takes startupSeconds, preStopSeconds. */}}
{{- define "larder.rayProbes" -}}
{{- $check := "httpGet: {path: /api/healthz, port: 52365}" -}}
startupProbe:
  {{ $check }}
  periodSeconds: 5
  failureThreshold: {{ div (add (int .startupSeconds) 4) 5 }}
readinessProbe:
  {{ $check }}
  periodSeconds: 10
  timeoutSeconds: 5
livenessProbe:
  {{ $check }}
  periodSeconds: 30
  timeoutSeconds: 5
  failureThreshold: 4
lifecycle:
  preStop:
    sleep: {seconds: {{ .preStopSeconds }}}
{{- end }}
