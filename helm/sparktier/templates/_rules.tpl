{{/* Rules between values, each broken one with its key, the rule, what was found and the cure. All are told at once. */}}
{{- define "sparktier.rules" -}}
{{- $problems := list -}}
{{- $replicas := default dict .Values.config.replicas -}}
{{- $device := default "auto" $replicas.device -}}
{{- if eq $device "auto" -}}
{{- $problems = append $problems "config.replicas.device: must be cpu or cuda, since the chart asks for GPUs by it (found auto). Set it." -}}
{{- end -}}
{{- if $problems }}{{ fail (printf "\n%s" (join "\n" $problems)) }}{{ end -}}
{{- end }}
