{{- define "sparktier.replicaName" -}}
{{ include "sparktier.name" .root }}-replica-{{ .number }}
{{- end }}

{{/* Where each replica answers, for the gateway and the controller. */}}
{{- define "sparktier.replicaList" -}}
{{- $list := dict -}}
{{- range $number := until (int (include "sparktier.count" .)) -}}
{{- $name := include "sparktier.replicaName" (dict "root" $ "number" $number) -}}
{{- $url := printf "http://%s.%s.svc:%d" $name $.Release.Namespace (int $.Values.engine.port) -}}
{{- $_ := set $list (printf "replica-%d" $number) (dict "url" $url "state" "serving") -}}
{{- end -}}
{{ toJson $list }}
{{- end }}

{{/* Ray's head and the engine share a container, because both need node 0's GPUs. KubeRay hands over Ray's command. */}}
{{- define "sparktier.engineCommand" -}}
ulimit -n 65536 || true
/bin/bash -c "$KUBERAY_GEN_RAY_START_CMD" &
ray=$!
until ray health-check >/dev/null 2>&1; do kill -0 $ray || exit 1; sleep 1; done
exec sparktier engine /etc/sparktier/config/config.yaml --replica {{ .number }} --host 0.0.0.0 --port {{ int .root.Values.engine.port }} --ranks-within-s {{ int .root.Values.engine.startSeconds }}
{{- end }}

{{- define "sparktier.engineEnv" -}}
{{ include "sparktier.cacheEnv" . }}
- {name: SPARKTIER_KEYS_FILE, value: /etc/sparktier/keys/keys.json}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
# Ray runs its workers at nice 15 by default. Here they are the ranks, which every request waits for.
- {name: RAY_worker_niceness, value: "0"}
{{- range $name, $value := .Values.engine.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "sparktier.engineResources" -}}
{{- $limits := dict "memory" .Values.engine.memory -}}
{{- if ne (include "sparktier.onCpu" .) "true" }}{{ $_ := set $limits .Values.engine.gpuResource (int (include "sparktier.ranksPerNode" .)) }}{{ end -}}
{{- with .Values.engine.rdma }}{{ if .resource }}{{ $_ := set $limits .resource (int .count) }}{{ end }}{{ end -}}
{{ toYaml (dict "limits" $limits "requests" (merge (dict "cpu" .Values.engine.cpu) $limits)) }}
{{- end }}

{{- define "sparktier.engineSecurity" -}}
{{- if .Values.engine.rdma.resource -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
# Network cards read pinned memory.
capabilities: {drop: [ALL], add: [IPC_LOCK]}
{{- else -}}
{{ include "sparktier.containerSecurity" . }}
{{- end }}
{{- end }}

{{- define "sparktier.engineMounts" -}}
- {name: config, mountPath: /etc/sparktier/config, readOnly: true}
- {name: models, mountPath: /models}
- {name: cache, mountPath: /cache}
- {name: scratch, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- with .Values.engine.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sparktier.engineVolumes" -}}
{{ include "sparktier.configVolume" . }}
{{ include "sparktier.cacheVolumes" . }}
- name: scratch
  emptyDir: {sizeLimit: {{ .Values.engine.scratch }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.engine.sharedMemory }}}
{{- with .Values.engine.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sparktier.engineLabels" -}}
{{ include "sparktier.labels" .root }}
sparktier/component: engine
sparktier/replica: {{ .number | quote }}
{{- end }}

{{/* Keys of the pod that head and workers share. */}}
{{- define "sparktier.enginePod" -}}
serviceAccountName: {{ include "sparktier.name" .root }}-engine
automountServiceAccountToken: false
securityContext: {{- include "sparktier.podSecurity" .root | nindent 2 }}
{{- include "sparktier.pullSecrets" .root }}
# A replica is one tree of processes, whose orphans a first process has to reap.
shareProcessNamespace: true
terminationGracePeriodSeconds: {{ add (int .root.Values.engine.drainSeconds) 30 }}
{{- with .root.Values.engine.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .root.Values.engine.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.engine.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.engine.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "sparktier.matchLabels" .root | nindent 8 }}
        sparktier/component: engine
{{- end }}
