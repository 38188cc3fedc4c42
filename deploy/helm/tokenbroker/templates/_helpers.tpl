{{- define "tokenbroker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tokenbroker.fullname" -}}
{{- $name := include "tokenbroker.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 55 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 55 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 55 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tokenbroker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tokenbroker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tokenbroker.labels" -}}
{{ include "tokenbroker.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* The metadata of an object: call it with a list of the context and a suffix of the name. */}}
{{- define "tokenbroker.metadata" -}}
{{- $root := first . -}}
name: {{ include "tokenbroker.fullname" $root }}{{ last . }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "tokenbroker.labels" $root | nindent 2 }}
{{- end -}}

{{- define "tokenbroker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tokenbroker.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tokenbroker.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The host name of the Service, under which callers reach the broker. */}}
{{- define "tokenbroker.host" -}}
{{ include "tokenbroker.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* "true" if the pod needs the token of its service account, to fetch the keys of the cluster. */}}
{{- define "tokenbroker.readsClusterKeys" -}}
{{- $reads := .Values.kubernetes.enabled -}}
{{- range .Values.config.issuers -}}
{{- if eq (default "" .preset) "kubernetes" -}}{{- $reads = true -}}{{- end -}}
{{- end -}}
{{- if $reads -}}true{{- end -}}
{{- end -}}
