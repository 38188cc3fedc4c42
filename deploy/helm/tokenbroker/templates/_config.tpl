{{/* The configuration of the broker, as YAML. */}}
{{- define "tokenbroker.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "listen" (include "tokenbroker.listen" . | fromYaml) -}}
{{- $_ := set $config "store" (include "tokenbroker.store" . | fromYaml) -}}
{{- with .Values.drain -}}
{{- $drain := dict "drain_delay" (printf "%ds" (int .delaySeconds)) "drain_timeout" (printf "%ds" (int .timeoutSeconds)) -}}
{{- $_ := set $config "server" (merge $drain (default dict $config.server)) -}}
{{- end -}}
{{- with .Values.kubernetes -}}
{{- if .enabled -}}
{{- $audience := default "tokenbroker" $config.server.caller_audience -}}
{{- $cluster := dict "preset" "kubernetes" "issuer" .issuer "audiences" (list $audience) -}}
{{- $_ := set $config "issuers" (append (default list $config.issuers) $cluster) -}}
{{- $callers := default list $config.callers -}}
{{- range .callers -}}
{{- $subject := printf "system:serviceaccount:%s:%s" .namespace .serviceAccount -}}
{{- $caller := dict "name" .name "issuer" $.Values.kubernetes.issuer "subject" $subject "roles" .roles -}}
{{- with .limits -}}{{- $_ := set $caller "limits" . -}}{{- end -}}
{{- $callers = append $callers $caller -}}
{{- end -}}
{{- if $callers -}}{{- $_ := set $config "callers" $callers -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "tokenbroker.listen" -}}
{{- with .Values.grpc }}
grpc:
  address: ":{{ .port }}"
  {{- if .plaintext }}
  plaintext: true
  {{- end }}
  {{- with .opaqueIssuer }}
  opaque_issuer: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .Values.http }}
{{- if .enabled }}
http:
  address: ":{{ .port }}"
  {{- if .plaintext }}
  plaintext: true
  {{- end }}
  {{- with .url }}
  url: {{ . | quote }}
  {{- end }}
  {{- with .opaqueIssuer }}
  opaque_issuer: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .Values.ops }}
ops:
  {{- if .plaintext }}
  address: ":{{ .port }}"
  plaintext: true
  {{- else }}
  address: "127.0.0.1:{{ .port }}"
  {{- end }}
{{- end }}
# For "broker healthcheck" in the container, and for operators with kubectl exec.
unix:
  path: /run/tokenbroker/broker.sock
  mode: "0600"
{{- with .Values.tls }}
{{- if ne .source "none" }}
tls:
  min_version: {{ .minVersion | quote }}
  {{- if eq .source "spiffe" }}
  spiffe:
    socket: unix:///spiffe-workload-api/{{ .spiffe.socket }}
    {{- with .spiffe.trustDomains }}
    trust_domains: {{ toJson . }}
    {{- end }}
  {{- else }}
  cert: /run/tls/tls.crt
  key: /run/tls/tls.key
  {{- if or .callersCA.secret .callersCA.configMap }}
  client_ca: /run/tls/callers-ca.crt
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tokenbroker.store" -}}
{{- if eq .Values.store.kind "memory" }}
memory: {}
{{- else }}
sealing_keys: file:/run/ring/ring.json
{{- if eq .Values.store.kind "bolt" }}
bolt: /var/lib/tokenbroker/broker.db
{{- else }}
{{- with .Values.store.redis }}
redis:
  addresses: {{ toJson .addresses }}
  prefix: {{ .prefix | quote }}
  {{- if .cluster }}
  cluster: true
  {{- end }}
  {{- with .sentinelMaster }}
  sentinel_master: {{ . | quote }}
  {{- end }}
  {{- with .username }}
  username: {{ . | quote }}
  {{- end }}
  {{- if .password.secret }}
  password: file:/run/redis/password
  {{- end }}
  {{- with .sentinelUsername }}
  sentinel_username: {{ . | quote }}
  {{- end }}
  {{- if .sentinelPassword.secret }}
  sentinel_password: file:/run/redis/sentinel-password
  {{- end }}
  {{- with .db }}
  db: {{ . }}
  {{- end }}
  {{- if not .plaintext }}
  tls:
    {{- if or .tls.ca.secret .tls.ca.configMap }}
    ca: /run/redis/ca.crt
    {{- end }}
    {{- if .tls.clientCertificate.secret }}
    cert: /run/redis/tls.crt
    key: /run/redis/tls.key
    {{- end }}
    {{- with .tls.serverName }}
    server_name: {{ . | quote }}
    {{- end }}
    {{- if not (or .tls.ca.secret .tls.ca.configMap .tls.clientCertificate.secret .tls.serverName) }}
    {}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The parts of the configuration for which a broker must restart. */}}
{{- define "tokenbroker.restartConfig" -}}
{{- omit (include "tokenbroker.config" . | fromYaml) "clients" "issuers" "callers" "roles" | toYaml -}}
{{- end -}}

{{/* The ports that IdPs, issuers and the collector of traces listen on, as a JSON list. */}}
{{- define "tokenbroker.identityProviderPorts" -}}
{{- $urls := list "https://discovery" -}}
{{- $config := .Values.config -}}
{{- range $config.clients -}}
{{- $urls = concat $urls (list .issuer .token_url) -}}
{{- end -}}
{{- range $config.issuers -}}
{{- $urls = concat $urls (list .issuer .jwks_url (dig "introspection" "endpoint" "" .)) -}}
{{- end -}}
{{- $urls = append $urls (dig "tracing" "endpoint" "" $config) -}}
{{- $ports := list -}}
{{- range compact $urls -}}
{{- $standard := ternary ":80" ":443" (hasPrefix "http://" .) -}}
{{- $port := regexFind "^https?://[^/]+" . | regexFind ":[0-9]+$" | default $standard -}}
{{- $ports = append $ports (trimPrefix ":" $port | int) -}}
{{- end -}}
{{- toJson (uniq $ports) -}}
{{- end -}}

{{- define "tokenbroker.redisPorts" -}}
{{- $ports := list -}}
{{- range .Values.store.redis.addresses -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | int) -}}
{{- end -}}
{{- toJson (uniq $ports) -}}
{{- end -}}
