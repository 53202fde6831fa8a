{{/* What the pods of gateway and controller share. `component` is which. */}}
{{- define "sparktier.serviceLabels" -}}
{{ include "sparktier.labels" .root }}
sparktier/component: {{ .component }}
{{- end }}

{{- define "sparktier.serviceSelector" -}}
{{ include "sparktier.matchLabels" .root }}
sparktier/component: {{ .component }}
{{- end }}

{{- define "sparktier.servicePod" -}}
{{- $values := index .root.Values .component -}}
serviceAccountName: {{ include "sparktier.name" .root }}-{{ .component }}
automountServiceAccountToken: {{ eq .component "controller" }}
securityContext: {{- include "sparktier.podSecurity" .root | nindent 2 }}
{{- include "sparktier.pullSecrets" .root }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "sparktier.serviceSelector" . | nindent 8 }}
{{- end }}

{{- define "sparktier.serviceResources" -}}
requests: {cpu: {{ .cpu | quote }}, memory: {{ .memory }}}
limits: {memory: {{ .memory }}}
{{- end }}

{{/* Changes of the configuration and of the list of replicas reach these pods by new ones. */}}
{{- define "sparktier.configSum" -}}
{{ printf "%s%s%s" (include "sparktier.config" .) (include "sparktier.replicaList" .) (toJson .Values.files) | sha256sum }}
{{- end }}
