{{- define "sparktier.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 34 | trimSuffix "-" -}}
{{- end }}

{{/* Selects the pods of a release. KubeRay puts its own values into labels of app.kubernetes.io. */}}
{{- define "sparktier.matchLabels" -}}
sparktier/release: {{ .Release.Name }}
{{- end }}

{{- define "sparktier.labels" -}}
{{ include "sparktier.matchLabels" . }}
app.kubernetes.io/name: sparktier
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "sparktier.onCpu" -}}
{{- if eq (default "auto" (default dict .Values.config.replicas).device) "cpu" }}true{{ end -}}
{{- end }}

{{- define "sparktier.image" -}}
{{- $tag := .Values.image.tag -}}
{{- if not $tag }}{{ $tag = printf "%s%s" .Chart.AppVersion (ternary "-cpu" "" (eq (include "sparktier.onCpu" .) "true")) }}{{ end -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end }}

{{/* Numbers of the layout, with the defaults of the configuration. */}}
{{- define "sparktier.count" -}}{{ int (default 1 (default dict .Values.config.replicas).count) }}{{- end }}
{{- define "sparktier.nodes" -}}{{ int (default 1 (default dict .Values.config.replicas).nodes) }}{{- end }}
{{- define "sparktier.ranks" -}}{{ int (default 1 (default dict .Values.config.replicas).tensor_parallel) }}{{- end }}
{{- define "sparktier.ranksPerNode" -}}
{{ div (int (include "sparktier.ranks" .)) (int (include "sparktier.nodes" .)) }}
{{- end }}
