{{/*
Rules between values: each prints a line with key, rule, what was found and the cure, or nothing. Those between keys of
`config` are the program's own (configs/rules), which a test compares; here they are told before anything is deployed.
*/}}
{{- define "sparktier.rules" -}}
{{- $lines := list -}}
{{- range $part := list "sparktier.chartRules" "sparktier.layoutRules" "sparktier.speculationRules" "sparktier.tierRules" "sparktier.serviceRules" -}}
{{- range splitList "\n" (include $part $) }}{{ if trim . }}{{ $lines = append $lines (trim .) }}{{ end }}{{ end -}}
{{- end -}}
{{- if $lines }}{{ fail (printf "\n%s" (join "\n" $lines)) }}{{ end -}}
{{- end }}

{{- define "sparktier.chartRules" -}}
{{- $replicas := default dict .Values.config.replicas }}
{{- $pods := mul (include "sparktier.count" .) (include "sparktier.nodes" .) }}
{{- if not (has (default "auto" $replicas.device) (list "cpu" "cuda")) }}
config.replicas.device: must be cpu or cuda, since the chart asks for GPUs by it (found auto). Set it.
{{- end }}
{{- range $section, $keys := include "sparktier.ownConfig" . | fromYaml }}
{{- $given := default dict (index $.Values.config $section) }}
{{- range $key, $own := $keys }}
{{- if and (hasKey $given $key) (ne (toString (index $given $key)) (toString $own)) }}
config.{{ $section }}.{{ $key }}: is set by the chart, to {{ $own }} (found {{ index $given $key }}). Remove it.
{{- end }}
{{- end }}
{{- end }}
{{- with (default dict .Values.config.gateway).pepper_file }}
config.gateway.pepper_file: has no effect, since the pepper comes from secrets.pepper (found {{ . }}). Remove it.
{{- end }}
{{- with (default dict .Values.config.controller).lease_path }}
config.controller.lease_path: has no effect, since the chart makes a Lease (found {{ . }}). Remove it.
{{- end }}
{{- $usage := or .Values.gateway.usageClaim.existingClaim .Values.gateway.usageClaim.size }}
{{- if and (default dict .Values.config.usage).path (not $usage) }}
config.usage.path: needs a volume that outlives the pod (found {{ .Values.config.usage.path }}). Remove it, and set gateway.usageClaim.
{{- end }}
{{- $server := default dict .Values.config.server }}
{{- if and $server.grpc_tls_cert_file (not .Values.gateway.grpcTlsSecret) }}
config.server.grpc_tls_cert_file: needs a Secret in the gateway's pods (found {{ $server.grpc_tls_cert_file }}). Remove it, and set gateway.grpcTlsSecret.
{{- end }}
{{- range $name := list "replicaKeys" "tenants" "pepper" }}
{{- if not (index $.Values.secrets $name).name }}
secrets.{{ $name }}.name: must name a Secret (found none). Make one as the chart's README says, and name it.
{{- end }}
{{- end }}
{{- range $name, $_ := .Values.files }}
{{- if has $name (list "config.yaml" "replicas.json") }}
files.{{ $name }}: is written by the chart (found another). Take another name.
{{- end }}
{{- end }}
{{- $weights := or .Values.models.claim.existingClaim .Values.models.claim.size }}
{{- if and .Values.models.download.enabled (not $weights) }}
models.download.enabled: needs a claim to fill (found none). Set models.claim.size or models.claim.existingClaim.
{{- end }}
{{- if and .Values.models.offline (not $weights) }}
models.offline: needs a claim with the weights (found none). Set models.claim.existingClaim.
{{- end }}
{{- range $name := list "profile" "calibrate" }}
{{- if (index $.Values.jobs $name).enabled }}
{{- if not $weights }}
jobs.{{ $name }}.enabled: needs a claim for what it writes (found none). Set models.claim.size or models.claim.existingClaim.
{{- end }}
{{- if gt (int (include "sparktier.nodes" $)) 1 }}
jobs.{{ $name }}.enabled: runs in one pod, and a replica takes {{ include "sparktier.nodes" $ }} nodes (found true). Run sparktier {{ $name }} in such a cluster by hand.
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.jobs.calibrate.enabled (not (hasKey .Values.files .Values.jobs.calibrate.prompts)) }}
jobs.calibrate.prompts: must be an entry of files (found {{ .Values.jobs.calibrate.prompts }}). Add files.{{ .Values.jobs.calibrate.prompts }}.
{{- end }}
{{- with .Values.gateway.autoscaling }}
{{- if and .enabled (lt (int .maxReplicas) (int $.Values.gateway.replicas)) }}
gateway.autoscaling.maxReplicas: must be at least gateway.replicas, {{ int $.Values.gateway.replicas }} (found {{ int .maxReplicas }}). Raise it.
{{- end }}
{{- if and .enabled (or $.Values.gateway.usageClaim.existingClaim $.Values.gateway.usageClaim.size) }}
gateway.autoscaling.enabled: a log of use has one writer (found true with gateway.usageClaim). Remove one of them.
{{- end }}
{{- end }}
{{- range $key, $claim := dict "models.claim" .Values.models.claim "jitCache" .Values.jitCache }}
{{- if and $claim.size (not $claim.existingClaim) (gt (int $pods) 1) (not (has "ReadWriteMany" $claim.accessModes)) }}
{{ $key }}.accessModes: must have ReadWriteMany, since {{ $pods }} pods share it (found {{ join ", " $claim.accessModes }}). Add it.
{{- end }}
{{- end }}
{{- if and (gt (int .Values.gateway.replicas) 1) $usage }}
gateway.replicas: must be 1 with gateway.usageClaim, since a log of use has one writer (found {{ .Values.gateway.replicas }}). Set it to 1, or leave out the claim.
{{- end }}
{{- if and .Values.gateway.ingress.enabled (not .Values.gateway.ingress.host) }}
gateway.ingress.host: must name the host of the Ingress (found none). Set it.
{{- end }}
{{- if and .Values.gateway.route.enabled (not .Values.gateway.route.gateway) }}
gateway.route.gateway: must name the Gateway that routes join (found none). Set it.
{{- end }}
{{- if and .Values.monitoring.serviceMonitor .Values.networkPolicy.enabled (not .Values.networkPolicy.monitoring) }}
networkPolicy.monitoring: must say who reads metrics with monitoring.serviceMonitor (found none). Name the pods or the namespace of Prometheus.
{{- end }}
{{- end }}

{{- define "sparktier.layoutRules" -}}
{{- $r := default dict .Values.config.replicas }}
{{- $ranks := int (include "sparktier.ranks" .) }}
{{- $method := default "none" (default dict .Values.config.speculation).method }}
{{- range $key := list "nodes" "expert_parallel" "attention_data_parallel" }}
{{- $parts := int (default 1 (index $r $key)) }}
{{- if mod $ranks $parts }}
config.replicas.{{ $key }}: must divide tensor_parallel ({{ $ranks }}) (found {{ $parts }}). Use a divisor of {{ $ranks }}.
{{- end }}
{{- end }}
{{- $a2a := default "none" $r.moe_all_to_all }}
{{- if and (ne $a2a "none") (ne (int (default 1 $r.expert_parallel)) $ranks) }}
config.replicas.expert_parallel: must equal tensor_parallel ({{ $ranks }}) with moe_all_to_all {{ $a2a }}, which spans all ranks (found {{ int (default 1 $r.expert_parallel) }}). Set it to {{ $ranks }}, or moe_all_to_all: none.
{{- end }}
{{- $groups := int (default 1 $r.attention_data_parallel) }}
{{- with $r.max_running_requests }}
{{- if mod (int .) $groups }}
config.replicas.max_running_requests: must be a multiple of attention_data_parallel ({{ $groups }}), since groups take equal shares (found {{ int . }}). Use {{ mul $groups (max 1 (div (int .) $groups)) }}.
{{- end }}
{{- end }}
{{- if and $r.page_tokens $r.chunked_prefill_tokens }}
{{- $unit := mul (int $r.page_tokens) $groups }}
{{- if mod (int $r.chunked_prefill_tokens) $unit }}
config.replicas.chunked_prefill_tokens: must be a multiple of page_tokens x attention_data_parallel ({{ $unit }}) (found {{ int $r.chunked_prefill_tokens }}). Use {{ mul $unit (add1 (div (int $r.chunked_prefill_tokens) $unit)) }}.
{{- end }}
{{- end }}
{{- if eq (default "auto" $r.device) "cpu" }}
{{- range $path, $found := dict "model.quantization" (default dict .Values.config.model).quantization "replicas.attention_backend" (ternary nil $r.attention_backend (eq (default "" $r.attention_backend) "torch_native")) }}
{{- if $found }}
config.{{ $path }}: must be null with replicas.device cpu: its kernels need a GPU (found {{ $found }}). Remove it.
{{- end }}
{{- end }}
{{- if ne $a2a "none" }}
config.replicas.moe_all_to_all: must be none with replicas.device cpu: all-to-all kernels need a GPU (found {{ $a2a }}). Set it to none.
{{- end }}
{{- if hasPrefix "fp8" (default "auto" (default dict .Values.config.model).kv_dtype) }}
config.model.kv_dtype: must be auto or bfloat16 with replicas.device cpu: torch attention reads no 8-bit KV cache (found {{ .Values.config.model.kv_dtype }}). Set it to auto.
{{- end }}
{{- if has $method (list "dspark_native" "standalone") }}
config.speculation.method: must be none or chain or tree with replicas.device cpu: SGLang verifies drafts on a GPU only (found {{ $method }}). Set it to chain.
{{- end }}
{{- else if and (eq $method "tree") (ne (default "" $r.attention_backend) "flashinfer") }}
config.replicas.attention_backend: must be flashinfer with speculation.method tree: no other takes a tree's mask (found {{ default "null" $r.attention_backend }}). Set it to flashinfer, or speculation.method to chain.
{{- end }}
{{- end }}

{{- define "sparktier.speculationRules" -}}
{{- $s := default dict .Values.config.speculation }}
{{- $r := default dict .Values.config.replicas }}
{{- $method := default "none" $s.method }}
{{- $drafting := list "draft_path" "draft_revision" "block_tokens" }}
{{- $ladder := list "short_tokens" "safe_rung" "step_times_path" "live_shares" "canary" "canary_noise_frac" }}
{{- $chains := concat $drafting $ladder (list "accept_rule" "prompt_lookup") }}
{{- $lookup := append $ladder "block_tokens" }}
{{- $trees := concat $chains (list "tree_rows" "tree_parents" "tree_children") }}
{{- $native := concat $drafting (list "verification" "step_cost_path" "calibration_path" "safe_rung" "step_times_path" "live_shares") }}
{{- $used := index (dict "none" list "chain" $chains "tree" $trees "ngram" $lookup "dspark_native" $native "standalone" $drafting) $method }}
{{- range $key, $value := omit $s "method" }}
{{- if not (or (has $key $used) (kindIs "invalid" $value)) }}
config.speculation.{{ $key }}: has no meaning with speculation.method {{ $method }} (found {{ $value }}). Remove it, or choose another method.
{{- end }}
{{- end }}
{{- if and (has $method (list "chain" "tree" "standalone")) (not $s.draft_path) }}
config.speculation.draft_path: must name what drafts with speculation.method {{ $method }} (found null). Set it to a checkpoint that was made for this model.
{{- end }}
{{- $block := default (ternary 8 nil (eq $method "ngram")) $s.block_tokens }}
{{- if and (has $method (list "chain" "tree" "ngram")) $block (gt (int (default 2 $s.short_tokens)) (int $block)) }}
config.speculation.short_tokens: must not exceed speculation.block_tokens, which is {{ int $block }} (found {{ int (default 2 $s.short_tokens) }}). Lower it, or draft longer blocks.
{{- end }}
{{- $highest := get (dict "chain" 2 "tree" 3 "ngram" 2 "dspark_native" 2) $method }}
{{- if and $highest $s.safe_rung (gt (int $s.safe_rung) (int $highest)) }}
config.speculation.safe_rung: must be at most {{ $highest }}, where the ladder of speculation.method {{ $method }} ends (found {{ int $s.safe_rung }}). Lower it.
{{- end }}
{{- if and (hasKey $s "live_shares") (not (kindIs "invalid" $s.live_shares)) (not $s.step_times_path) }}
config.speculation.live_shares: has no meaning without speculation.step_times_path (found {{ $s.live_shares }}). Remove it, or name a table of step times.
{{- end }}
{{- $groups := int (default 1 $r.attention_data_parallel) }}
{{- if and (gt $groups 1) (eq $method "standalone") }}
config.replicas.attention_data_parallel: must be 1 with speculation.method standalone (found {{ $groups }}). Set it to 1, or choose another method.
{{- end }}
{{- if and (gt $groups 1) (or $s.prompt_lookup (eq $method "ngram")) }}
config.replicas.attention_data_parallel: must be 1 with prompt lookup, which is not tried under it (found {{ $groups }}). Set it to 1, or draft without prompt lookup.
{{- end }}
{{- if and $s.prompt_lookup (eq (default "match" $s.accept_rule) "ratio") }}
config.speculation.accept_rule: must be match with speculation.prompt_lookup (found ratio). Set accept_rule: match, or prompt_lookup: false.
{{- end }}
{{- $a2a := default "none" $r.moe_all_to_all }}
{{- if and (gt $groups 1) (eq $method "dspark_native") (not (has $a2a (list "none" "megamoe" "mori"))) }}
config.replicas.moe_all_to_all: must be none, megamoe or mori for DSpark under attention-DP (found {{ $a2a }}). Use one of the three, or attention_data_parallel: 1.
{{- end }}
{{- if and (gt $groups 1) (has $method (list "chain" "tree" "ngram")) (ne $a2a "none") }}
config.replicas.moe_all_to_all: must be none with speculation.method {{ $method }} under attention-DP (found {{ $a2a }}). Set it to none, or attention_data_parallel to 1.
{{- end }}
{{- if and (gt $groups 1) (eq (default "static" $s.verification) "compact") (ne $a2a "none") }}
config.speculation.verification: must be static under attention-DP with an all-to-all backend (found compact). Set verification: static, or moe_all_to_all: none.
{{- end }}
{{- if and (eq $method "dspark_native") (eq (default "static" $s.verification) "static") }}
{{- range $key := list "step_cost_path" "calibration_path" "step_times_path" }}
{{- with index $s $key }}
config.speculation.{{ $key }}: has no effect with verification static, which budgets nothing (found {{ . }}). Set verification: compact, or remove it.
{{- end }}
{{- end }}
{{- end }}
{{- if and $s.step_times_path $s.step_cost_path }}
config.speculation.step_cost_path: has no effect beside speculation.step_times_path (found {{ $s.step_cost_path }}). Keep one of the two.
{{- end }}
{{- if and $s.step_times_path (gt $groups 1) (eq $method "dspark_native") }}
config.speculation.step_times_path: needs replicas.attention_data_parallel 1 with speculation.method dspark_native, where it is {{ $groups }} (found {{ $s.step_times_path }}). Remove it, set attention_data_parallel: 1, or choose the method chain.
{{- end }}
{{- end }}

{{- define "sparktier.tierRules" -}}
{{- $tiers := default dict .Values.config.tiers }}
{{- $defaults := 0 }}{{ $promises := dict }}{{ $first := dict }}
{{- range $id, $tier := $tiers }}
{{- if $tier.default }}{{ $defaults = add1 $defaults }}{{ end }}
{{- if hasKey $first $tier.name }}
config.tiers.{{ $id }}.name: must differ from the name of tier {{ index $first $tier.name }} (found {{ $tier.name }}). Rename one of them.
{{- end }}
{{- $_ := set $first $tier.name $id }}
{{- $_ := set $promises $tier.name (float64 (default 0 $tier.promise_tok_s)) }}
{{- end }}
{{- if and $tiers (ne (int $defaults) 1) }}
config.tiers: exactly one tier must have default: true (found {{ $defaults }} of {{ len $tiers }}). Mark the tier that serves requests which name none.
{{- end }}
{{- range $id, $tier := $tiers }}
{{- $downgrades := eq (default "queue" $tier.on_full) "downgrade" }}
{{- if and $downgrades (not $tier.downgrade_to) }}
config.tiers.{{ $id }}.downgrade_to: must be given with on_full: downgrade (found null). Name one of {{ keys $promises | sortAlpha | join ", " }}.
{{- else if and $tier.downgrade_to (not $downgrades) }}
config.tiers.{{ $id }}.downgrade_to: has no meaning with on_full: {{ default "queue" $tier.on_full }} (found {{ $tier.downgrade_to }}). Set on_full: downgrade, or remove it.
{{- else if and $tier.downgrade_to (not (hasKey $promises $tier.downgrade_to)) }}
config.tiers.{{ $id }}.downgrade_to: must be the name of a tier (found {{ $tier.downgrade_to }}). Name one of {{ keys $promises | sortAlpha | join ", " }}.
{{- else if and $tier.downgrade_to (ge (index $promises $tier.downgrade_to) (index $promises $tier.name)) }}
config.tiers.{{ $id }}.downgrade_to: must promise less than the tier itself (found {{ $tier.downgrade_to }} at {{ index $promises $tier.downgrade_to }} tok/s). Name a slower tier, or let this one queue or reject.
{{- end }}
{{- if and $tier.yields $tier.promise_tok_s }}
config.tiers.{{ $id }}.yields: must be false for a tier with a promise (found true). Remove it, or set promise_tok_s: null.
{{- end }}
{{- if and $tier.max_stall_ms (not (default dict $.Values.config.speculation).step_times_path) }}
config.tiers.{{ $id }}.max_stall_ms: has no meaning without speculation.step_times_path (found {{ $tier.max_stall_ms }}). Remove it, or name a table of step times.
{{- end }}
{{- end }}
{{- range $word, $name := (default dict $.Values.config.tokens).tiers }}
{{- if not (hasKey $promises $name) }}
config.tokens.tiers.{{ $word }}: must be the name of a tier (found {{ $name }}). Name one of {{ keys $promises | sortAlpha | join ", " }}.
{{- end }}
{{- end }}
{{- range $key := list "priority_tier" "flex_tier" }}
{{- with index (default dict $.Values.config.gateway) $key }}
{{- if not (hasKey $promises .) }}
config.gateway.{{ $key }}: must be the name of a tier (found {{ . }}). Name one of {{ keys $promises | sortAlpha | join ", " }}.
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "sparktier.serviceRules" -}}
{{- $c := default dict .Values.config.controller }}
{{- $tick := int (default 1000 $c.tick_ms) }}
{{- range $key, $given := dict "ttl_ms" (default 10000 $c.ttl_ms) "stale_ms" (default 5000 $c.stale_ms) }}
{{- if lt (int $given) (int (mul 3 $tick)) }}
config.controller.{{ $key }}: must be at least 3 ticks of {{ $tick }} ms (found {{ int $given }}). Use {{ mul 3 $tick }} or more, or a shorter tick_ms.
{{- end }}
{{- end }}
{{- $v := default dict .Values.config.supervision }}
{{- if gt (float64 (default 1 $v.restart_backoff_first_s)) (float64 (default 60 $v.restart_backoff_max_s)) }}
config.supervision.restart_backoff_first_s: must not exceed restart_backoff_max_s (found {{ default 1 $v.restart_backoff_first_s }}). Lower it.
{{- end }}
{{- $m := default dict .Values.config.model }}
{{- if contains ":" (default "" $m.served_name) }}
config.model.served_name: must not contain a colon, which separates an adapter's name in requests (found {{ $m.served_name }}). Set it to a name without one.
{{- end }}
{{- $server := default dict .Values.config.server }}
{{- range $kind := list "tls" "grpc_tls" "replica" }}
{{- $cert := printf "%s_cert_file" $kind }}
{{- $key := printf "%s_key_file" $kind }}
{{- range $file, $other := dict $cert $key $key $cert }}
{{- if and (not (index $server $file)) (index $server $other) }}
config.server.{{ $file }}: must be set where the other file of TLS is (found null). Name it, or leave out both.
{{- end }}
{{- end }}
{{- end }}
{{- if and $server.tls_client_ca_file (not $server.tls_cert_file) (not $server.grpc_tls_cert_file) (not .Values.gateway.grpcTlsSecret) }}
config.server.tls_client_ca_file: can't be set where no listener has TLS (found {{ $server.tls_client_ca_file }}). Set server.tls_cert_file too.
{{- end }}
{{- $tokens := default dict .Values.config.tokens }}
{{- if $tokens.issuer }}
{{- range $key := list "audience" "keys_url" }}
{{- if not (index $tokens $key) }}
config.tokens.{{ $key }}: must be set with tokens.issuer (found null). Set it, or take no tokens.
{{- end }}
{{- end }}
{{- if not $tokens.tiers }}
config.tokens.tiers: must give at least one tier with tokens.issuer (found none). Name the tier of each word.
{{- end }}
{{- with $tokens.keys_url }}
{{- if not (regexMatch "^(https://|http://(127\\.|localhost[:/]|\\[::1\\]))" .) }}
config.tokens.keys_url: must be an https address, or one of this machine (found {{ . }}). Name the https address of the issuer's keys.
{{- end }}
{{- end }}
{{- end }}
{{- $t := default dict .Values.config.training }}
{{- $method := default "none" (default dict .Values.config.speculation).method }}
{{- with $t.target_layer_ids }}
{{- if not (has $method (list "none" "chain" "tree")) }}
config.training.target_layer_ids: can't be read with speculation.method {{ $method }} (found {{ toJson . }}). Remove it, or set speculation.method: none.
{{- end }}
{{- if gt (int (default 1 (default dict $.Values.config.replicas).attention_data_parallel)) 1 }}
config.replicas.attention_data_parallel: must be 1 with training.target_layer_ids (found {{ int $.Values.config.replicas.attention_data_parallel }}). Set it to 1, or remove training.target_layer_ids.
{{- end }}
{{- $before := -1 }}
{{- range . }}
{{- if le (int .) (int $before) }}
config.training.target_layer_ids: must rise, since features lie side by side in this order (found {{ int . }} after {{ int $before }}). Sort them.
{{- end }}
{{- $before = . }}
{{- end }}
{{- end }}
{{- if and $t.records_at_once (not $t.target_layer_ids) (ne (int $t.records_at_once) 4) }}
config.training.records_at_once: has no meaning without training.target_layer_ids (found {{ $t.records_at_once }}). Remove it, or name layers.
{{- end }}
{{- end }}
