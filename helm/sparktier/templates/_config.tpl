{{/* What the chart sets itself in the configuration, as dotted keys; another value there is refused. */}}
{{- define "sparktier.ownConfig" -}}
ray: {address: auto}
server:
  host: 0.0.0.0
  port: 8000
  internal_host: 0.0.0.0
  internal_port: 9000
  grpc_port: 8500
  {{- if .Values.gateway.grpcTlsSecret }}
  grpc_tls_cert_file: /etc/sparktier/tls/tls.crt
  grpc_tls_key_file: /etc/sparktier/tls/tls.key
  {{- end }}
gateway: {keys_file: /etc/sparktier/tenants/tenants.yaml}
{{- if or .Values.gateway.usageClaim.existingClaim .Values.gateway.usageClaim.size }}
usage: {path: /usage}
{{- end }}
controller:
  host: 0.0.0.0
  port: 9100
  kubernetes_lease: {{ .Release.Namespace }}/{{ include "sparktier.name" . }}
  log_path: /var/lib/sparktier/decisions.jsonl
{{- end }}

{{/* The configuration with what the chart sets. Keys of tiers are numbers in the file, which Helm holds as text. */}}
{{- define "sparktier.config" -}}
{{- $own := include "sparktier.ownConfig" . | fromYaml -}}
{{- $config := mustMergeOverwrite (deepCopy (omit .Values.config "tiers")) $own -}}
{{ toYaml $config }}
{{- with .Values.config.tiers }}
tiers:
  {{- range $id, $tier := . }}
  {{ $id }}: {{ toJson $tier }}
  {{- end }}
{{- end }}
{{- end }}
