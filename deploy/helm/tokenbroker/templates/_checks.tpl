{{/* Fails with all that is wrong with the values and that the schema cannot say. */}}
{{- define "tokenbroker.check" -}}
{{- $problems := list -}}
{{- $v := .Values -}}
{{- if ne $v.store.kind "redis" -}}
  {{- if gt (int $v.replicas) 1 -}}
    {{- $problems = append $problems (printf "replicas: brokers share tokens through Redis only: set replicas to 1, or store.kind to redis instead of %s" $v.store.kind) -}}
  {{- end -}}
{{- else if not $v.store.redis.addresses -}}
  {{- $problems = append $problems "store.redis.addresses: give the address of Redis, HOST:PORT; or set store.kind to bolt or memory, and replicas to 1" -}}
{{- end -}}
{{- range $path, $ca := dict "store.redis.tls.ca" $v.store.redis.tls.ca "tls.callersCA" $v.tls.callersCA -}}
  {{- if and $ca.secret $ca.configMap -}}
    {{- $problems = append $problems (printf "%s: give a Secret or a ConfigMap, not both" $path) -}}
  {{- end -}}
{{- end -}}
{{- if eq $v.tls.source "none" -}}
  {{- if not $v.grpc.plaintext -}}
    {{- $problems = append $problems "tls.source: without TLS tokens cross the network unencrypted: choose secret, certManager or spiffe; or accept it with grpc.plaintext: true" -}}
  {{- end -}}
  {{- if and $v.http.enabled (not $v.http.plaintext) -}}
    {{- $problems = append $problems "tls.source: without TLS the HTTP API is unencrypted as well: choose secret, certManager or spiffe; or accept it with http.plaintext: true" -}}
  {{- end -}}
{{- else if $v.grpc.plaintext -}}
  {{- $problems = append $problems "grpc.plaintext: the certificate of tls.source would not be used: set tls.source to none, or remove grpc.plaintext" -}}
{{- end -}}
{{- if and (eq $v.tls.source "certManager") (not $v.tls.certManager.issuer.name) -}}
  {{- $problems = append $problems "tls.certManager.issuer.name: name the Issuer or ClusterIssuer of cert-manager" -}}
{{- end -}}
{{- if and (has $v.tls.source (list "spiffe" "none")) (or $v.tls.callersCA.secret $v.tls.callersCA.configMap) -}}
  {{- $problems = append $problems (printf "tls.callersCA: not used with tls.source: %s; remove it" $v.tls.source) -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled (not $v.ops.plaintext) -}}
  {{- $problems = append $problems "serviceMonitor: Prometheus reaches metrics only if they are served beyond the pod, without TLS: set ops.plaintext to true" -}}
{{- end -}}
{{- if and $v.ops.plaintext (dig "server" "pprof" false $v.config) -}}
  {{- $problems = append $problems "config.server.pprof: profiles are served on loopback only: remove ops.plaintext" -}}
{{- end -}}
{{- if and (hasPrefix "http://" (dig "tracing" "endpoint" "" $v.config)) (not $v.tracing.plaintext) -}}
  {{- $problems = append $problems "config.tracing.endpoint: traces would cross the network unencrypted: use https://, or accept it with tracing.plaintext: true" -}}
{{- end -}}
{{- $audit := dig "audit" "file" "stdout" $v.config -}}
{{- if not (or (eq $audit "stdout") (and (eq $v.store.kind "bolt") (hasPrefix "/var/lib/tokenbroker/" $audit))) -}}
  {{- $problems = append $problems "config.audit.file: the container can write to stdout, and with store.kind: bolt below /var/lib/tokenbroker/" -}}
{{- end -}}
{{- range $name, $client := $v.config.clients -}}
  {{- $secret := default "" $client.secret -}}
  {{- if hasPrefix "file:/run/secrets/" $secret -}}
    {{- if not (has (trimPrefix "file:/run/secrets/" $secret | splitList "/" | first) $v.mounts.secrets) -}}
      {{- $problems = append $problems (printf "config.clients.%s.secret: add its Secret to mounts.secrets: files are at /run/secrets/SECRET/KEY" $name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and $v.kubernetes.callers (not $v.kubernetes.enabled) -}}
  {{- $problems = append $problems "kubernetes.callers: the broker accepts tokens of the cluster only with kubernetes.enabled: true" -}}
{{- end -}}
{{- if $v.networkPolicy.enabled -}}
  {{- if and $v.serviceMonitor.enabled (not $v.networkPolicy.prometheus) -}}
    {{- $problems = append $problems "networkPolicy.prometheus: say where Prometheus is; otherwise it cannot read the metrics" -}}
  {{- end -}}
  {{- if not $v.networkPolicy.callers -}}
    {{- $problems = append $problems "networkPolicy.callers: say who may connect; otherwise no caller reaches the broker" -}}
  {{- end -}}
  {{- if and (eq $v.store.kind "redis") $v.store.redis.sentinelMaster (not $v.networkPolicy.extraPorts) -}}
    {{- $problems = append $problems "networkPolicy.extraPorts: name the port of the Redis servers behind the sentinels" -}}
  {{- end -}}
{{- end -}}
{{- if $problems -}}
  {{- fail (printf "\n\n%s\n" (join "\n" $problems)) -}}
{{- end -}}
{{- end -}}
