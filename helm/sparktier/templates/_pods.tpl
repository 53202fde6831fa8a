{{/* What every pod has: no rights, a user of its own, a root that can't be written. */}}
{{- define "sparktier.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int .Values.userId }}
runAsGroup: {{ int .Values.userId }}
fsGroup: {{ int .Values.userId }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sparktier.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "sparktier.imageKeys" -}}
image: {{ include "sparktier.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "sparktier.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A volume named `name` by the values of a claim: an existing claim, the chart's own, or an empty folder. */}}
{{- define "sparktier.claimVolume" -}}
- name: {{ .name }}
{{- if .claim.existingClaim }}
  persistentVolumeClaim: {claimName: {{ .claim.existingClaim }}}
{{- else if .claim.size }}
  persistentVolumeClaim: {claimName: {{ .own }}}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}

{{- define "sparktier.configVolume" -}}
- name: config
  configMap: {name: {{ include "sparktier.name" . }}}
{{- end }}

{{- define "sparktier.keysVolume" -}}
- name: keys
  secret:
    secretName: {{ .Values.secrets.replicaKeys.name }}
    defaultMode: 0440
    items: [{key: {{ .Values.secrets.replicaKeys.key }}, path: keys.json}]
{{- end }}

{{/* Caches of weights and kernels, and where they are told to the libraries. */}}
{{- define "sparktier.cacheVolumes" -}}
{{ include "sparktier.claimVolume" (dict "name" "models" "claim" .Values.models.claim "own" (printf "%s-models" (include "sparktier.name" .))) }}
{{ include "sparktier.claimVolume" (dict "name" "cache" "claim" .Values.jitCache "own" (printf "%s-cache" (include "sparktier.name" .))) }}
{{- end }}

{{- define "sparktier.cacheEnv" -}}
- {name: HOME, value: /cache}
- {name: XDG_CACHE_HOME, value: /cache}
- {name: SPARKTIER_CACHE, value: /cache/sparktier}
- {name: HF_HOME, value: /models/hub}
{{- if .Values.models.offline }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- with .Values.secrets.hubToken }}
{{- if .name }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "sparktier.downloadEnv" -}}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /models/hub}
{{- with .Values.secrets.hubToken }}
{{- if .name }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- end }}
