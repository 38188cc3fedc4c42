{{/* The pod of a broker: the template of the Deployment or of the StatefulSet. */}}
{{- define "tokenbroker.pod" -}}
metadata:
  labels:
    {{- include "tokenbroker.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Of the configuration for which a broker must restart; it notices other changes itself.
    checksum/config: {{ include "tokenbroker.restartConfig" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "tokenbroker.serviceAccountName" . }}
  # The token with which the broker fetches the keys of the cluster.
  automountServiceAccountToken: {{ include "tokenbroker.readsClusterKeys" . | eq "true" }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add .Values.drain.delaySeconds .Values.drain.timeoutSeconds 10 }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "tokenbroker.spread" . }}
  {{- . | nindent 2 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: broker
      image: {{ include "tokenbroker.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve, --config, /etc/tokenbroker/broker.yaml]
      env:
        - name: GOMEMLIMIT
          value: {{ .Values.goMemLimit | quote }}
      ports:
        - name: grpc
          containerPort: {{ .Values.grpc.port }}
        {{- if .Values.http.enabled }}
        - name: http
          containerPort: {{ .Values.http.port }}
        {{- end }}
        {{- if .Values.ops.plaintext }}
        - name: ops
          containerPort: {{ .Values.ops.port }}
        {{- end }}
      {{- include "tokenbroker.probes" . | nindent 6 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        {{- include "tokenbroker.mounts" . | nindent 8 }}
  volumes:
    {{- include "tokenbroker.volumes" . | nindent 4 }}
{{- end -}}

{{/* The start waits up to 30 s for a SPIFFE agent. */}}
{{- define "tokenbroker.probes" -}}
{{- if .Values.ops.plaintext -}}
startupProbe:
  httpGet:
    path: /readyz
    port: ops
  periodSeconds: 1
  failureThreshold: 90
readinessProbe:
  httpGet:
    path: /readyz
    port: ops
  periodSeconds: 2
livenessProbe:
  httpGet:
    path: /livez
    port: ops
  periodSeconds: 10
{{- else -}}
{{- $command := `[/broker, healthcheck, --addr, "unix:///run/tokenbroker/broker.sock"]` -}}
startupProbe:
  exec:
    command: {{ $command }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 45
readinessProbe:
  exec:
    command: {{ $command }}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  exec:
    command: {{ $command }}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}
{{- end -}}

{{- define "tokenbroker.spread" -}}
{{- if gt (int .Values.replicas) 1 -}}
{{- $keys := dict "zone" "topology.kubernetes.io/zone" "host" "kubernetes.io/hostname" -}}
{{- $constraints := list -}}
{{- range $where, $when := .Values.topologySpread -}}
{{- if ne $when "none" -}}
{{- $labels := dict "matchLabels" (include "tokenbroker.selectorLabels" $ | fromYaml) -}}
{{- $constraints = append $constraints (dict "maxSkew" 1 "topologyKey" (get $keys $where) "whenUnsatisfiable" $when "labelSelector" $labels) -}}
{{- end -}}
{{- end -}}
{{- with $constraints -}}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tokenbroker.mounts" -}}
- name: config
  mountPath: /etc/tokenbroker
  readOnly: true
- name: socket
  mountPath: /run/tokenbroker
{{- with .Values.tls }}
{{- if eq .source "spiffe" }}
- name: spiffe
  mountPath: /spiffe-workload-api
  readOnly: true
{{- else if ne .source "none" }}
- name: tls
  mountPath: /run/tls
  readOnly: true
{{- end }}
{{- end }}
{{- with .Values.store }}
{{- if ne .kind "memory" }}
- name: ring
  mountPath: /run/ring
  readOnly: true
{{- end }}
{{- if eq .kind "bolt" }}
- name: data
  mountPath: /var/lib/tokenbroker
{{- else if and (eq .kind "redis") (include "tokenbroker.redisSources" $) }}
- name: redis
  mountPath: /run/redis
  readOnly: true
{{- end }}
{{- end }}
{{- range $i, $name := .Values.mounts.secrets }}
- name: secret-{{ $i }}
  mountPath: /run/secrets/{{ $name }}
  readOnly: true
{{- end }}
{{- range $i, $name := .Values.mounts.configMaps }}
- name: configmap-{{ $i }}
  mountPath: /run/config/{{ $name }}
  readOnly: true
{{- end }}
{{- if .Values.mounts.serviceAccountTokens }}
- name: tokens
  mountPath: /run/tokens
  readOnly: true
{{- end }}
{{- end -}}

{{- define "tokenbroker.volumes" -}}
- name: config
  configMap:
    name: {{ include "tokenbroker.fullname" . }}
- name: socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- with .Values.tls }}
{{- if eq .source "spiffe" }}
- name: spiffe
  csi:
    driver: {{ .spiffe.driver }}
    readOnly: true
{{- else if ne .source "none" }}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ .secret }}
          items:
            - {key: tls.crt, path: tls.crt}
            - {key: tls.key, path: tls.key}
      {{- with include "tokenbroker.ca" (list .callersCA "callers-ca.crt") }}
      {{- . | nindent 6 }}
      {{- end }}
{{- end }}
{{- end }}
{{- with .Values.store }}
{{- if ne .kind "memory" }}
- name: ring
  secret:
    secretName: {{ .sealingKeys.secret }}
    defaultMode: 0440
    items:
      - {key: {{ .sealingKeys.key }}, path: ring.json}
{{- end }}
{{- if and (eq .kind "bolt") .bolt.existingClaim }}
- name: data
  persistentVolumeClaim:
    claimName: {{ .bolt.existingClaim }}
{{- else if eq .kind "redis" }}
{{- with include "tokenbroker.redisSources" $ }}
- name: redis
  projected:
    defaultMode: 0440
    sources:
      {{- . | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}
{{- range $i, $name := .Values.mounts.secrets }}
- name: secret-{{ $i }}
  secret:
    secretName: {{ $name }}
    defaultMode: 0440
{{- end }}
{{- range $i, $name := .Values.mounts.configMaps }}
- name: configmap-{{ $i }}
  configMap:
    name: {{ $name }}
{{- end }}
{{- with .Values.mounts.serviceAccountTokens }}
- name: tokens
  projected:
    defaultMode: 0440
    sources:
      {{- range . }}
      - serviceAccountToken:
          audience: {{ .audience | quote }}
          expirationSeconds: {{ default 3600 .expirationSeconds }}
          path: {{ .name }}
      {{- end }}
{{- end }}
{{- end -}}

{{/* A file with authorities, from a Secret or a ConfigMap, as a source of a projected volume. */}}
{{- define "tokenbroker.ca" -}}
{{- $path := last . -}}
{{- with first . -}}
{{- if .secret -}}
- secret:
    name: {{ .secret }}
    items:
      - {key: {{ .key }}, path: {{ $path }}}
{{- else if .configMap -}}
- configMap:
    name: {{ .configMap }}
    items:
      - {key: {{ .key }}, path: {{ $path }}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The sources of /run/redis; empty if Redis needs no file. */}}
{{- define "tokenbroker.redisSources" -}}
{{- $sources := list -}}
{{- with .Values.store.redis -}}
{{- range $path, $file := dict "password" .password "sentinel-password" .sentinelPassword -}}
{{- if $file.secret -}}
{{- $item := dict "key" $file.key "path" $path -}}
{{- $sources = append $sources (dict "secret" (dict "name" $file.secret "items" (list $item))) -}}
{{- end -}}
{{- end -}}
{{- if not .plaintext -}}
{{- with .tls.clientCertificate.secret -}}
{{- $items := list (dict "key" "tls.crt" "path" "tls.crt") (dict "key" "tls.key" "path" "tls.key") -}}
{{- $sources = append $sources (dict "secret" (dict "name" . "items" $items)) -}}
{{- end -}}
{{- $sources = concat $sources (include "tokenbroker.ca" (list .tls.ca "ca.crt") | fromYamlArray) -}}
{{- end -}}
{{- end -}}
{{- if $sources -}}{{- toYaml $sources -}}{{- end -}}
{{- end -}}
