"""The manifest: every symbol inside SGLang that sparktier imports, replaces, subclasses or relies on, and why.

A new use is one line here, then `python -m sparktier.serving.engine.upstream --record`. A test compares this table with
what the code names. A class covers its own methods; name an inherited one where it is defined.
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
    # Plugins and ranks
    Use("sglang.srt.plugins:load_plugins", "SGLang's Ray actors don't call it, so our rank does"),
    Use("sglang.srt.ray.scheduler_actor:SchedulerActor", "our rank extends it"),
    # Starting a replica
    Use("sglang.srt.server_args:ServerArgs", "made from our settings"),
    Use("sglang.srt.arg_groups.field_order:POSITIONAL_FIELD_ORDER", "the argument names that settings may pass on"),
    Use("sglang.srt.ray.engine:RayEngine", "starts the ranks on our placement group"),
    Use("sglang.srt.ray.engine:SchedulerActor", "replaced by our launcher"),
    Use("sglang.srt.entrypoints.engine:Engine._launch_subprocesses", "the start sequence that we call in two parts"),
    Use("sglang.srt.entrypoints.engine:init_tokenizer_manager", "an argument of the start sequence"),
    Use("sglang.srt.entrypoints.engine:run_scheduler_process", "an argument of the start sequence"),
    Use("sglang.srt.entrypoints.engine:run_detokenizer_process", "an argument of the start sequence"),
    Use("sglang.srt.entrypoints.http_server:_setup_and_run_http_server", "serves the OpenAI API of a replica"),
    Use("sglang.srt.entrypoints.http_server:app", "gets our admin routes"),
    # Settings that are refused or computed because of what SGLang does
    Use("sglang.srt.arg_groups.speculative_hook:_handle_dspark", "rules of native DSpark under attention-DP"),
    Use("sglang.srt.arg_groups.speculative_hook:_handle_eagle_family", "rules of a standalone draft"),
    Use("sglang.srt.arg_groups.overrides:_a2a_ep_size", "all-to-all backends span all ranks"),
    Use("sglang.srt.arg_groups.parallel_hook:handle_data_parallelism", "attention-DP divides the prefill chunk"),
    Use("sglang.srt.arg_groups.memory_hook:handle_gpu_memory_settings", "doctor --plan has its estimate of reserves"),
    Use("sglang.srt.arg_groups.memory_hook:reserve_for_graph_mb", "doctor --plan has its estimate of graphs"),
    Use("sglang.srt.model_executor.pool_configurator:DSV4PoolConfigurator", "doctor --plan has its bytes of a token"),
)
