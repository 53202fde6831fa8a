{{/* The configuration with what the chart sets. Keys of tiers are numbers in the file, which Helm holds as text. */}}
{{- define "sparktier.config" -}}
{{- $own := dict "ray" (dict "address" "auto") "server" (dict "host" "0.0.0.0") -}}
{{- $_ := set $own "gateway" (dict "keys_file" "/etc/sparktier/tenants/tenants.yaml") -}}
{{- $config := mustMergeOverwrite (deepCopy (omit .Values.config "tiers")) $own -}}
{{ toYaml $config }}
{{- with .Values.config.tiers }}
tiers:
  {{- range $id, $tier := . }}
  {{ $id }}: {{ toJson $tier }}
  {{- end }}
{{- end }}
{{- end }}
