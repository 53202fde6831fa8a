"""The manifest: every symbol inside SGLang that sparktier imports, replaces, subclasses or relies on, and why.

A new use is one line here, then `python -m sparktier.serving.engine.upstream.check --record`. A test compares this
table with what the code names. A class covers its own methods; name an inherited one where it is defined.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Use:
    """A symbol, `package.module` or `package.module:Name.attribute`, and what we rely on it for."""

    symbol: str
    why: str


USES: tuple[Use, ...] = (
    # The CPU platform
    Use("sglang.srt.platforms.cpu:CpuDeviceMixin", "what a CPU device answers; our platform extends it"),
    Use("sglang.srt.platforms.device_mixin:PlatformEnum", "OOT opens SGLang's torch-native branches"),
    Use("sglang.srt.platforms.interface:SRTPlatform", "the platform contract"),
    Use("sglang.srt.platforms:_resolve_platform", "where our platform's entry point is chosen"),
    Use("sglang.srt.platforms:current_platform", "each rank reports the platform it really has"),
    # Expert-parallel MoE on CPUs
    Use("sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE", "the layer that gets our CPU forward; its weights"),
    Use("sglang.srt.layers.moe.token_dispatcher:StandardCombineInput", "what a MoE forward returns"),
    Use("sglang.srt.layers.moe.token_dispatcher:StandardDispatcher", "marks other ranks' experts with -1"),
    Use("sglang.srt.layers.quantization.unquant:UnquantizedFusedMoEMethod", "its `apply` is replaced by ours"),
    Use("sglang.srt.layers.moe.moe_runner.base:MoeRunnerConfig", "what a layer may ask for that ours refuses"),
    # Packed linear layers on CPUs
    Use("sglang.srt.layers.linear:LinearBase", "every linear layer; its method multiplies"),
    Use("sglang.srt.layers.quantization.unquant:UnquantizedLinearMethod", "its `apply` is replaced by ours"),
    Use("sglang.srt.layers.quantization.unquant:UnquantizedEmbeddingMethod", "the output head's method, replaced"),
    Use("sglang.srt.layers.vocab_parallel_embedding:ParallelLMHead", "the output head"),
    Use("sglang.srt.layers.logits_processor:should_apply_lm_head_quant_method", "asks our method for the logits"),
    # The demo model's class
    Use("sglang.srt.models.qwen2_moe:Qwen2MoeForCausalLM", "our model class extends it and copies its construction"),
    Use("sglang.srt.models.qwen2_moe:Qwen2MoeModel", "built with our layer type; captures features"),
    Use("sglang.srt.models.qwen2_moe:Qwen2MoeDecoderLayer", "our layer gives it another attention"),
    Use(
        "sglang.srt.models.qwen2_moe:Qwen2MoeAttention",
        "our attention lets it derive head_dim, then remakes projections",
    ),
    Use("sglang.srt.models.qwen2_moe:Qwen2MoeSparseMoeBlock.forward", "calls the shared-expert kernel by name"),
    Use("sglang.srt.models.qwen2_moe:fused_gate_sigmoid_mul_add", "Triton only: replaced by one with a torch branch"),
    Use("sglang.srt.layers.linear:QKVParallelLinear", "remade with the true hidden size"),
    Use("sglang.srt.layers.linear:RowParallelLinear", "remade with the true hidden size"),
    Use("sglang.srt.layers.logits_processor:LogitsProcessor", "part of the model"),
    Use("sglang.srt.runtime_context:get_parallel", "groups and sizes while a model is built"),
    Use("sglang.srt.utils.common:add_prefix", "names of sub-layers"),
    Use("sglang.srt.utils.hf_transformers.common:get_rope_config", "rotary settings of either transformers version"),
    # Attention and KV on CPUs
    Use("sglang.srt.arg_groups.choices:add_attention_backend_choices", "lets settings name our attention"),
    Use("sglang.srt.arg_groups.choices:add_draft_attention_backend_choices", "lets the draft model use it too"),
    Use("sglang.srt.layers.attention.attention_registry:register_attention_backend", "registers our attention"),
    Use("sglang.srt.layers.attention.torch_native_backend:TorchNativeAttnBackend", "our CPU attention extends it"),
    Use("sglang.srt.layers.radix_attention:AttentionType", "a draft block attends both ways"),
    Use("sglang.srt.mem_cache.memory_pool:KVWriteLoc", "where attention stores keys and values"),
    Use("sglang.srt.mem_cache.memory_pool:MHATokenToKVPool", "our CPU pool moves accepted rows without Triton"),
    Use("sglang.srt.mem_cache.allocation:assign_req_to_token_pool_func", "Triton only; replaced on CPUs"),
    Use("sglang.srt.mem_cache.allocation:get_last_loc", "picks Triton by backend name; replaced on CPUs"),
    Use("sglang.srt.mem_cache.allocation:get_last_loc_torch", "what replaces it"),
    # Ragged verify passes inside graphs on GPUs
    Use("sglang.srt.layers.attention.attention_registry:ATTENTION_BACKENDS", "its flashinfer is replaced by ours"),
    Use("sglang.srt.layers.attention.flashinfer_backend:FlashInferAttnBackend", "ours extends it"),
    Use("sglang.srt.layers.attention.flashinfer_backend:FlashInferIndicesUpdaterPrefill", "knows heads and types"),
    Use("sglang.srt.layers.attention.flashinfer_backend:PrefillMetadata", "hands our wrapper to its layers"),
    Use(
        "sglang.srt.layers.attention.flashinfer_backend:fast_prefill_plan",
        "plans a replay without a wait; ours does as it, with equal rows",
    ),
    Use("sglang.srt.mem_cache.kv_loc_plan:IdSpaceKind", "which slots the page table names"),
    Use("sglang.srt.mem_cache.kv_index_translator:KVIndexTranslator.pack_read_stream", "fills the page table"),
    Use(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner:create_attention_graph_variants",
        "replaced, so that trees get a graph of their own beside the chains' one",
    ),
    Use(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner",
        "its buckets of rows, when it replays one, what it hands the attention",
    ),
    Use(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner:build_replay_fb_view",
        "the lengths of a replay: a live request's with its rows, an empty slot's as captured",
    ),
    Use("sglang.srt.layers.attention.graph_variants:AttentionGraphVariants", "the contract of such variants"),
    Use(
        "sglang.srt.model_executor.runner_utils.capture_mode:get_capture_attention_variant",
        "which of them is being captured",
    ),
    Use("sglang.srt.speculative.ragged_verify:resolve_ragged_verify_layout", "rows of a batch, if it has them"),
    Use(
        "sglang.kernels.ops.speculative.ragged_verify_kernels:PaddedToBucket",
        "rows of a bucket's empty slots, on the host as on the device",
    ),
    Use("sglang.srt.speculative.ragged_verify:round_up_grid", "the bucket that holds so many rows"),
    Use(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner:ragged_verify_compact_graphs_enabled",
        "whether graphs are by rows in all: replaced while those of equal rows are captured",
    ),
    Use("sglang.srt.mem_cache.kv_loc_plan:KVLocPlan", "takes a window's first columns for passes of equal rows"),
    Use(
        "sglang.srt.speculative.dspark_components.dspark_planner:ragged_capture_num_tokens",
        "the buckets that were captured",
    ),
    Use(
        "sglang.srt.speculative.dspark_components.dspark_planner:ragged_capture_max_slots",
        "the most requests that a graph holds",
    ),
    # Speculation
    Use("sglang.srt.speculative.spec_registry:CustomSpecAlgo", "the contract of a registered algorithm"),
    Use("sglang.srt.speculative.spec_info:SpeculativeAlgorithm", "where the algorithm is registered"),
    Use("sglang.srt.managers.overlap_utils:FutureMap", "a method missing from CustomSpecAlgo makes one"),
    Use("sglang.srt.speculative.dspark_components.dspark_worker_v2:DSparkWorkerV2", "our worker extends it"),
    Use(
        "sglang.srt.speculative.dspark_components.dspark_worker_v2:DSparkWorkerV2.__init__",
        "it makes no draft where `_hosts_draft` is false, as in a worker without one",
    ),
    Use("sglang.srt.speculative.draft_worker_common:build_block_pos_offsets", "a worker without a draft makes its own"),
    Use(
        "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state:_resolve_dflash_aux_hidden_state",
        "reads the draft's config; left out where there is no draft",
    ),
    Use(
        "sglang.srt.speculative.dspark_components.dspark_worker_v2:resolve_runtime_config",
        "ties window to block; ours not",
    ),
    Use(
        "sglang.srt.speculative.dspark_components.dspark_config:parse_dspark_draft_config",
        "the block that a draft was trained for",
    ),
    Use("sglang.srt.configs.hybrid_arch:mambaish_config", "whether a target has recurrent layers: refused"),
    Use("sglang.srt.configs.model_config:is_deepseek_v4", "whether a target has a compressed cache: refused"),
    Use("sglang.srt.layers.radix_attention:RadixAttention", "whether a target's layers have windows: no trees"),
    Use("sglang.srt.speculative.dflash_info:DFlashVerifyInput", "a verify pass's input; ours adds who sees whom"),
    Use("sglang.srt.model_executor.forward_batch_info:CaptureHiddenMode", "how much a pass captures"),
    Use("sglang.srt.model_executor.forward_batch_info:CaptureHiddenMode.FULL", "features of every verified row"),
    Use("sglang.srt.speculative.dspark_components.dspark_planner:DSparkVerifyPlanner", "ours bounds it by the plan"),
    Use("sglang.srt.speculative.dspark_components.dspark_worker_v2:DSparkVerifyPlanner", "the name it is made by"),
    Use(
        "sglang.srt.speculative.dspark_components.dspark_planner:HostConfidenceBudgetPlanner",
        "its lagged survivals are what our planner decides a native chain's total by",
    ),
    Use("sglang.srt.layers.dp_attention:get_dp_tp_group", "the ranks that must run passes of one size"),
    Use("sglang.srt.speculative.spec_tp_sync:SpecTpSyncSite.DSPARK_PLAN", "ranks agree on a native chain's rows"),
    Use("sglang.srt.speculative.spec_info:SpeculativeAlgorithm.create_worker", "gives DSPARK our worker"),
    Use("sglang.srt.speculative.spec_tp_sync:SpecTpSync.sync", "hands rank 0's tree and outcome to all ranks"),
    Use("sglang.srt.speculative.spec_tp_sync:SpecTpSync", "a worker without a draft makes its own"),
    Use("sglang.srt.speculative.spec_tp_sync:SpecTpSyncSite", "the places where ranks agree"),
    Use("sglang.srt.speculative.spec_tp_sync:SpecTpSyncSite.DSPARK_ACCEPT_SAMPLE", "ranks agree on what is accepted"),
    Use("sglang.srt.speculative.spec_tp_sync:SpecTpSyncSite.DSPARK_DRAFT", "ranks agree on the tree"),
    Use("sglang.srt.speculative.dspark_components.dspark_draft:DraftBlockProposer", "runs the draft block"),
    Use(
        "sglang.srt.model_executor.model_runner:ModelRunner.decode_num_tokens_per_req",
        "rows of a request in a draft's graphs: replaced, as it answers with the window's",
    ),
    Use(
        "sglang.srt.speculative.draft_worker_common:make_draft_sampler_capture_hook",
        "has a draft's graph go on to the rows that are verified",
    ),
    Use(
        "sglang.srt.speculative.dspark_components.dspark_verify:DsparkVerifyEpilogue.capture_hook",
        "what SGLang's verify graphs end with: taken out",
    ),
    Use("sglang.srt.models.dspark:build_confidence_head", "a head that we never ask: left out, on GPUs as on CPUs"),
    Use("sglang.srt.speculative.dspark_components.dspark_draft:draft_markov_block", "samples the block's tokens"),
    Use("sglang.srt.speculative.dspark_components.dspark_draft:make_next_draft_input", "what a step hands the next"),
    Use("sglang.srt.speculative.dspark_components.dspark_planner:alloc_verify_window", "the verify rows' KV slots"),
    Use("sglang.srt.speculative.dspark_components.dspark_verify:TargetVerifyExecutor", "the ragged verify pass"),
    Use("sglang.srt.speculative.dspark_components.dspark_kv_inject:TargetHiddenKvInjector", "features to the draft"),
    Use("sglang.srt.speculative.dspark_components.dspark_config:read_draft_checkpoint_config", "the draft's block"),
    Use("sglang.srt.layers.logprob_processor:compute_spec_logprobs", "logprobs of a step's tokens"),
    Use("sglang.srt.speculative.dflash_info_v2:DFlashDraftInputV2", "a step's input"),
    Use("sglang.srt.speculative.ragged_verify:RaggedVerifyLayout", "rows of each request in a verify pass"),
    Use("sglang.srt.speculative.spec_utils:GrammarTree", "rows of a step as a grammar sees them"),
    Use("sglang.srt.speculative.spec_utils:build_grammar_vocab_mask", "the grammar's mask over those rows"),
    Use("sglang.srt.managers.utils:GenerationBatchResult", "what a step returns"),
    Use("sglang.srt.layers.sampler:Sampler", "its draw is replaced by keyed noise"),
    Use("sglang.srt.layers.sampler:register_sampler_backend", "offers the keyed sampler to plain decoding"),
    Use("sglang.srt.runtime_context:get_exec", "tells whether that sampler was chosen"),
    Use("sglang.srt.runtime_context:get_schedule", "how many requests may run, for which penalties have tables"),
    Use("sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo", "gets a seed for every request"),
    Use(
        "sglang.srt.managers.scheduler_components.internal_state:SchedulerInternalStateController",
        "plans come in through it and are read back",
    ),
    Use(
        "sglang.srt.managers.scheduler_components.internal_state:SetInternalStateReqOutput",
        "answers whether a plan was taken",
    ),
    Use("sglang.srt.managers.schedule_policy:PrefillAdder.preempt_to_schedule", "puts back the youngest who yields"),
    Use("sglang.srt.managers.scheduler:Scheduler.get_num_allocatable_reqs", "seats are pp_max_micro_batch_size there"),
    Use("sglang.srt.managers.scheduler_components.internal_state:logger", "says why a plan was refused"),
    # Attention groups under Ray and on CPUs
    Use("sglang.srt.ray.engine:RayEngine._launch_dp_scheduler_processes", "declares the ranks' address too late"),
    Use("sglang.srt.ray.engine:declare_resolution", "does so by this name; replaced by nothing, since it is known"),
    Use(
        "sglang.srt.managers.data_parallel_controller:start_cpu_monitor_thread",
        "would register the tokenizer's metric again, in the same process",
    ),
    Use(
        "sglang.srt.distributed.parallel_state:GroupCoordinator",
        "on CPUs its plain exchanges replace those that need NCCL or operators that CPUs lack",
    ),
    Use("sglang.srt.layers.dp_attention:memcpy_func", "Triton only; replaced on CPUs"),
    Use("sglang.srt.layers.dp_attention:memcpy_cpu", "what replaces it"),
    Use("sglang.srt.model_executor.forward_batch_info:_is_cpu", "without it, padding pins memory for a GPU"),
    Use("sglang.srt.managers.scheduler_components.dp_attn:SchedulerDPAttnAdapter", "has groups agree before a step"),
    Use(
        "sglang.srt.managers.scheduler_components.dp_attn:SchedulerDPAttnAdapter.prepare_mlp_sync_batch",
        "gathers facts of every group before a step; ours adds what a group would run",
    ),
    Use(
        "sglang.srt.managers.scheduler_components.dp_attn:prepare_mlp_sync_batch_raw",
        "makes the message by the name that we replace, and hands what was gathered to a batch, or an idle one",
    ),
    Use(
        "sglang.srt.managers.scheduler_components.dp_attn:MLPSyncBatchInfo", "that message; ours is two numbers longer"
    ),
    Use("sglang.srt.managers.scheduler_components.dp_attn:_update_gather_batch", "notes on a batch what was gathered"),
    Use(
        "sglang.srt.managers.scheduler:Scheduler.get_next_batch_to_run",
        "with drafts, groups decode only in steps in which none prefills",
    ),
    Use(
        "sglang.srt.model_executor.forward_batch_info:ForwardBatch.init_mlp_sync_metadata",
        "counts a pass's rows as requests times window; ours are as agreed",
    ),
    Use(
        "sglang.srt.model_executor.forward_batch_info:ForwardBatch._pad_inputs_to_size",
        "pads rows to the agreed ones; ours leaves requests alone",
    ),
    Use(
        "sglang.srt.model_executor.forward_batch_info:ForwardBatch.prepare_mlp_sync_batch",
        "calls it with rows to pad to",
    ),
    Use("sglang.srt.model_executor.forward_batch_info:ForwardMode", "an idle group's pass is a verify pass in a graph"),
    # One request's fault ends that request alone
    Use("sglang.srt.layers.sampler:Sampler.forward", "every sampler; ours marks rows without a finite logit before it"),
    Use(
        "sglang.srt.layers.sampler:Sampler._sync_token_ids_across_tp", "ranks agree on tokens; ours on marks with them"
    ),
    Use(
        "sglang.srt.layers.logits_processor:LogitsProcessorOutput",
        "a new one for each step, or one that each sampler sets; carries the marks to the host",
    ),
    Use("sglang.srt.managers.schedule_batch:FINISH_ABORT", "ends a request with a status and a message"),
    Use("sglang.srt.managers.schedule_batch:Req", "`to_finish` ends it, before its last token is looked at"),
    Use(
        "sglang.srt.managers.scheduler_components.batch_result_processor:SchedulerBatchResultProcessor",
        "marked requests are told to end before it processes a result, or advances grammars early",
    ),
    Use("sglang.srt.managers.scheduler:Scheduler", "where a step raises, its requests are named"),
    Use("sglang.srt.utils.common:async_h2d", "slots of new requests go to the device without a wait"),
    Use("sglang.srt.utils.common:async_d2h", "brings the marks to the host beside the tokens"),
    Use(
        "sglang.srt.constrained.base_grammar_backend:BaseGrammarBackend",
        "makes every grammar; ours refuses those that can produce nothing",
    ),
    Use("sglang.srt.constrained.base_grammar_backend:InvalidGrammarObject", "what SGLang answers with a 400"),
    Use(
        "sglang.srt.constrained.xgrammar_backend:XGrammarGrammar", "errors inside it leave its request without a token"
    ),
    Use("sglang.srt.speculative.spec_utils:traverse_tree", "the same over drafted tokens"),
    Use(
        "sglang.srt.sampling.penaltylib.min_new_tokens:BatchedMinNewTokensPenalizer",
        "bars early ends; a grammar that allows its end alone wins over it",
    ),
    # The canary
    Use("sglang.srt.layers.logits_processor:LogitsProcessor._get_logits", "logits of those rows, on all ranks"),
    Use("sglang.srt.layers.logits_processor:LogitsMetadata", "what that wants to know of a pass"),
    Use("sglang.srt.model_executor.forward_batch_info:ForwardBatch", "what a model hands the processor instead"),
    Use("sglang.srt.managers.scheduler:Scheduler.handle_generate_request", "queues it on every rank"),
    Use("sglang.srt.managers.utils:is_health_check_generate_req", "requests named like it are counted nowhere"),
    # Features for a trainer
    Use("sglang.srt.managers.tp_worker:TpModelWorker", "after its forward pass rank 0 sends what was captured"),
    Use("sglang.srt.managers.io_struct:GenerateReqInput", "asks for the prefill of a sequence"),
    Use("sglang.srt.managers.tokenizer_manager:TokenizerManager.generate_request", "takes that request, and ends it"),
    Use("sglang.srt.arg_groups.validation_hook:handle_aux_hidden_state_capture", "captures layers without a draft"),
    Use("sglang.srt.configs.model_config:ModelConfig", "how many layers there are to name"),
    Use(
        "sglang.srt.speculative.dspark_components.dspark_config:checkpoint_bundles_dspark_draft",
        "such a model's last layer can be read too",
    ),
    # Signals and metrics
    Use("sglang.srt.managers.scheduler:Scheduler.process_batch_result", "a step ends in it; ours times it"),
    Use("sglang.srt.managers.io_struct:SetInternalStateReq", "carries a plan's keys to the ranks"),
    Use(
        "sglang.srt.managers.scheduler:Scheduler._poll_timeout_aborts", "what it returns reaches all ranks in one pass"
    ),
    Use("sglang.utils:TypeBasedDispatcher", "takes our message that a plan's time is over"),
    Use("sglang.srt.managers.scheduler:Scheduler.on_idle", "called while nothing runs, which is no step's time"),
    Use("sglang.srt.managers.scheduler:Scheduler.event_loop_normal", "calls both, and answers requests between steps"),
    Use("sglang.srt.managers.scheduler:Scheduler.event_loop_overlap", "the same with overlap"),
    Use("sglang.srt.managers.io_struct:GetInternalStateReq", "asks ranks for their state, marked as ours by its id"),
    Use("sglang.srt.managers.io_struct:GetInternalStateReqOutput", "brings it back"),
    Use(
        "sglang.srt.managers.scheduler_components.request_receiver:SchedulerRequestReceiver",
        "brings a control request to every rank of a group in the same pass of their loops",
    ),
    Use(
        "sglang.srt.managers.tokenizer_control_mixin:TokenizerControlMixin.update_control_communicator_fan_out",
        "how many ranks answer a control request",
    ),
    Use(
        "sglang.srt.managers.scheduler_components.pool_stats_observer:PoolStats.get_kv_token_stats",
        "part of the KV cache in use",
    ),
    Use("sglang.srt.utils.common:set_prometheus_multiproc_dir", "keeps the directory that we chose for metrics"),
    Use(
        "sglang.srt.managers.tokenizer_manager:TokenizerManager",
        "hears of every request that ends, in a step or while it waits, and knows its prompts",
    ),
    Use("sglang.srt.managers.io_struct:unwrap_from_pickle", "opens the times of a step's requests"),
    Use("sglang.srt.constants:HEALTH_CHECK_RID_PREFIX", "probes are no requests"),
    Use("sglang.srt.observability.req_time_stats:SchedulerReqTimeStats", "when prefill began and ended on the ranks"),
    Use("sglang.srt.observability.req_time_stats:APIServerReqTimeStats", "when a request arrived"),
    # Plugins and ranks
    Use("sglang.srt.plugins:load_plugins", "SGLang's Ray actors don't call it, so our rank does"),
    Use("sglang.srt.ray.scheduler_actor:SchedulerActor", "our rank extends it"),
    # An engine that is stepped in one process
    Use("sglang.srt.managers.scheduler:configure_scheduler_process", "prepares the process of a rank"),
    Use("sglang.srt.runtime_context:SpawnRanks", "which rank the process is"),
    Use("sglang.srt.runtime_context:publish", "tells the process its arguments"),
    Use("sglang.srt.server_args:PortArgs", "where its sockets would be"),
    Use("sglang.srt.managers.io_struct:TokenizedGenerateReqInput", "a request as the scheduler takes it"),
    Use("sglang.srt.managers.io_struct:AbortReq", "ends the requests of a run"),
    Use("sglang.srt.sampling.sampling_params:SamplingParams", "how its tokens are chosen"),
    # Starting a replica
    Use("sglang.srt.server_args:ServerArgs", "made from our settings"),
    Use("sglang.srt.arg_groups.field_order:POSITIONAL_FIELD_ORDER", "the argument names that settings may pass on"),
    Use("sglang.srt.ray.engine:RayEngine", "starts the ranks on our placement group"),
    Use("sglang.srt.ray.engine:SchedulerActor", "replaced by our launcher"),
    Use("sglang.srt.entrypoints.engine:Engine._launch_subprocesses", "the start sequence that we call in two parts"),
    Use(
        "sglang.srt.managers.tokenizer_manager:TokenizerManager._handle_batch_request",
        "sends each of n choices with the same sampling parameters",
    ),
    Use("sglang.srt.managers.tokenizer_manager:TokenizerManager._send_one_request", "gives each its seed"),
    Use("sglang.srt.managers.tokenizer_manager:TokenizerManager._validate_one_request", "checks the context's bound"),
    Use("sglang.srt.managers.scheduler:Scheduler.init_req_max_new_tokens", "grants an output, by the rank's bounds"),
    Use("sglang.srt.managers.utils:validate_input_length", "refuses a prompt, by the rank's bounds"),
    Use("sglang.srt.managers.tp_worker:TpModelWorker.get_worker_info", "says those bounds; ours keep no tokens back"),
    Use(
        "sglang.srt.mem_cache.kv_cache_configurator:get_req_to_token_extra_context_len",
        "how far a step's slots may lie past the context; ours holds two steps",
    ),
    Use("sglang.srt.mem_cache.allocation_sizing:get_alloc_reserve_per_decode", "slots reserved for a request's steps"),
    Use("sglang.srt.mem_cache.allocation_sizing:get_alloc_page_size", "in what units slots are reserved"),
    Use("sglang.srt.managers.tokenizer_manager:TokenizerManager.config_value", "which parsers are in force"),
    Use(
        "sglang.srt.parser.template_manager:TemplateManager.chat_template_name",
        "whether another template than the tokenizer's is",
    ),
    Use("sglang.srt.parser.template_manager:TemplateManager.python_chat_template", "the same, of another kind"),
    Use("sglang.srt.parser.template_detection:resolve_auto_parsers", "chooses a parser from the chat template"),
    Use("sglang.srt.function_call.parser_names:TOOL_CALL_PARSER_NAMES", "the parsers that settings may name"),
    Use("sglang.srt.entrypoints.engine:init_tokenizer_manager", "an argument of the start sequence"),
    Use("sglang.srt.entrypoints.engine:run_scheduler_process", "an argument of the start sequence"),
    Use("sglang.srt.entrypoints.engine:run_detokenizer_process", "an argument of the start sequence"),
    Use("sglang.srt.entrypoints.http_server:_setup_and_run_http_server", "serves the OpenAI API of a replica"),
    Use("sglang.srt.entrypoints.http_server:app", "gets our admin routes"),
    Use(
        "sglang.srt.utils.auth:add_api_key_middleware", "its check of keys is replaced by ours, which is on all routes"
    ),
    Use("sglang.srt.runtime_context:get_serving", "where the HTTP server and its warm-up read the keys"),
    Use("sglang.srt.runtime_context:_ConfigBag.override", "puts them there and nowhere else"),
    # Settings that are refused or computed because of what SGLang does
    Use("sglang.srt.arg_groups.speculative_hook:_handle_dspark", "rules of native DSpark under attention-DP"),
    Use("sglang.srt.arg_groups.speculative_hook:_handle_eagle_family", "rules of a standalone draft"),
    Use("sglang.srt.arg_groups.overrides:_a2a_ep_size", "all-to-all backends span all ranks"),
    Use("sglang.srt.arg_groups.parallel_hook:handle_data_parallelism", "attention-DP divides the prefill chunk"),
    Use("sglang.srt.arg_groups.memory_hook:handle_gpu_memory_settings", "doctor --plan has its estimate of reserves"),
    Use("sglang.srt.arg_groups.memory_hook:reserve_for_graph_mb", "doctor --plan has its estimate of graphs"),
    Use("sglang.srt.model_executor.pool_configurator:DSV4PoolConfigurator", "doctor --plan has its bytes of a token"),
)
