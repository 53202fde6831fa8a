"""From resolved settings to what SGLang 0.5.23 is started with: keyword arguments of `ServerArgs`, and environment.

Pure. A test compares every name used here with the installed `ServerArgs`.
"""

from typing import Any

from sparktier.configs.plan_keys import PROMISED_PRIORITY, terms_of
from sparktier.configs.rules.layout import kv_tokens_of_longest
from sparktier.configs.settings.settings import Settings, SpeculationSettings, TrainingSettings
from sparktier.configs.settings.speculation import LADDERS
from sparktier.serving.deployment.planner import planner_options, prefill_chunk_tokens
from sparktier.serving.deployment.resolved import Resolved
from sparktier.serving.engine.rank_options import (
    ALGORITHM,
    DEFAULT_RUNNING_REQUESTS,
    KEYED_SAMPLER,
    FeatureOptions,
    LadderOptions,
    RankOptions,
    TreeBounds,
    fresh_endpoint,
)

# SGLang sizes the cache by the free memory. On a CPU all ranks share that, and each would take it all.
DEFAULT_CPU_KV_TOKENS = 16384

# Where blocks are drafted SGLang admits no request until two to four slots are free (min_free_slots_delayer.py). That
# saves draft prefills, but users wait beside free slots for as long as others' answers last. 1: no such wait.
FREE_SLOTS_TO_ADMIT = 1

_DISPATCH_ROWS_ENV = {
    "deepep": "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
    "mooncake": "SGLANG_MOONCAKE_EP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
    "nixl": "SGLANG_NIXL_EP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
}


def engine_kwargs(resolved: Resolved, *, replica: int) -> dict[str, Any]:
    """Return the `ServerArgs` fields for one replica; a field that is left out keeps SGLang's default.

    The caller adds host and port.
    """
    settings = resolved.settings
    chosen = {
        # Unseeded requests must not draw the same numbers on every replica, nor others after a restart.
        "random_seed": replica,
        "use_ray": True,
        "device": resolved.device,
        "log_level": "warning",
        "enable_metrics": True,
        **_model(resolved),
        **_layout(settings),
        **_speculation(resolved),
        **_yielding(settings),
        **settings.replicas.sglang_args,
        **(_cpu(settings) if resolved.device == "cpu" else {}),
    }
    return {name: value for name, value in chosen.items() if value is not None}


def engine_environment(resolved: Resolved) -> dict[str, str]:
    """Return the variables that every rank of a replica needs; SGLang reads these settings from nowhere else."""
    settings = resolved.settings
    environment: dict[str, str] = {}
    if settings.speculation.method in LADDERS:
        # Ragged rows need SGLang's compact verify graphs where there are graphs; without any, nothing changes.
        environment["SGLANG_RAGGED_VERIFY_MODE"] = "compact" if resolved.device == "cuda" else "static"
    if settings.speculation.method == "dspark_native":
        environment["SGLANG_RAGGED_VERIFY_MODE"] = settings.speculation.verification
    if rows_env := _DISPATCH_ROWS_ENV.get(settings.replicas.moe_all_to_all):
        environment[rows_env] = str(settings.replicas.dispatch_rows_per_rank)
    return environment


def rank_options_of(resolved: Resolved) -> RankOptions:
    """Return what each rank of a replica is told beside SGLang's own arguments.

    Raises:
        ArtifactError: the step times that the settings name are missing, or another deployment's.
    """
    settings = resolved.settings
    ladder = settings.speculation.method in LADDERS
    return RankOptions(
        tiers={tier_id: terms_of(tier) for tier_id, tier in settings.tiers.items()},
        default_tier=settings.default_tier,
        seats=_seats(settings),
        safe_rung=settings.speculation.safe_rung,
        ladder=_ladder_options(settings.speculation) if ladder else None,
        planner=planner_options(resolved),
        features=_feature_options(settings.training),
        canary=settings.speculation.canary if ladder else "off",
        canary_noise_frac=settings.speculation.canary_noise_frac,
    )


def _model(resolved: Resolved) -> dict[str, Any]:
    model = resolved.settings.model
    return {
        "model_path": resolved.model,
        "revision": model.revision,
        "served_model_name": model.public_name,
        "dtype": resolved.dtype,
        "quantization": model.quantization,
        "kv_cache_dtype": model.kv_dtype,
        "context_length": model.context_tokens,
        "trust_remote_code": model.trust_remote_code,
        "tool_call_parser": model.tool_call_parser,
    }


def _layout(settings: Settings) -> dict[str, Any]:
    replicas = settings.replicas
    return {
        "nnodes": replicas.nodes,
        "tp_size": replicas.tensor_parallel,
        "ep_size": replicas.expert_parallel,
        # Not dp_size with enable_dp_attention: SGLang drops that spelling after 2026 (parallel_hook.py).
        "attn_dp_size": replicas.attention_data_parallel,
        "max_running_requests": replicas.max_running_requests,
        "min_free_slots_delay": FREE_SLOTS_TO_ADMIT,
        "max_total_tokens": replicas.kv_tokens,
        "mem_fraction_static": replicas.memory_frac,
        "chunked_prefill_size": prefill_chunk_tokens(settings),
        "page_size": replicas.page_tokens,
        "attention_backend": replicas.attention_backend,
        "moe_a2a_backend": replicas.moe_all_to_all,
    }


def _yielding(settings: Settings) -> dict[str, Any]:
    """Have a promised request take the seat of the youngest one that yields, which SGLang then queues again."""
    if not any(tier.yields for tier in settings.tiers.values()):
        return {}
    return {
        "enable_priority_scheduling": True,
        "priority_scheduling_preemption_threshold": 0,
        "default_priority_value": PROMISED_PRIORITY,
        # Requests in a batch at most; a plan sets it anew.
        "pp_max_micro_batch_size": _seats(settings),
    }


def _seats(settings: Settings) -> int | None:
    """Return the most requests that run at once where a tier yields and all have caps; None is SGLang's own bound."""
    running = settings.replicas.max_running_requests or DEFAULT_RUNNING_REQUESTS
    caps = [tier.most_users(running) for tier in settings.tiers.values()]
    users = [cap for cap in caps if cap is not None]
    yields = any(tier.yields for tier in settings.tiers.values())
    return min(running, max(1, sum(users))) if yields and len(users) == len(caps) else None


def _speculation(resolved: Resolved) -> dict[str, Any]:
    settings, speculation = resolved.settings, resolved.settings.speculation
    draft = {
        "speculative_draft_model_path": resolved.draft,
        "speculative_draft_model_revision": speculation.draft_revision,
    }
    if speculation.method == "dspark_native":
        groups = settings.replicas.attention_data_parallel
        return draft | _dspark(speculation, confidences=_confidences(resolved), attention_groups=groups)
    if speculation.method == "standalone":
        return draft | _standalone(speculation)
    if speculation.method in LADDERS:
        groups = settings.replicas.attention_data_parallel
        return draft | {"sampling_backend": KEYED_SAMPLER, **_ladder(speculation, attention_groups=groups)}
    # On GPUs plain decoding keeps SGLang's own fused sampler.
    sampler = {"sampling_backend": KEYED_SAMPLER} if resolved.device == "cpu" else {}
    return sampler | _capture(settings.training)


def _feature_options(training: TrainingSettings) -> FeatureOptions | None:
    if training.target_layer_ids is None:
        return None
    return FeatureOptions(
        target_layer_ids=tuple(training.target_layer_ids),
        records_at_once=training.records_at_once,
        endpoint=fresh_endpoint(),
    )


def _ladder_options(speculation: SpeculationSettings) -> LadderOptions:
    tree = TreeBounds(rows=speculation.tree_rows, parents=speculation.tree_parents, children=speculation.tree_children)
    return LadderOptions(
        short_tokens=speculation.short_tokens,
        block_tokens=speculation.drafted_tokens,
        accept_rule=speculation.accept_rule,
        tree=tree if speculation.method == "tree" else None,
        prompt_lookup=speculation.prompt_lookup or speculation.method == "ngram",
        has_draft=speculation.method != "ngram",
    )


def _ladder(speculation: SpeculationSettings, *, attention_groups: int) -> dict[str, Any]:
    return {
        # As for SGLang's own DSpark: each group has the logits of its own rows without asking the others.
        "enable_dp_lm_head": True if attention_groups > 1 else None,
        "speculative_algorithm": ALGORITHM,
        "speculative_num_draft_tokens": speculation.rows_per_request,
    }


def _capture(training: TrainingSettings) -> dict[str, Any]:
    if training.target_layer_ids is None:
        return {}
    return {
        "enable_return_aux_hidden_states": True,
        "return_aux_hidden_state_layer_ids": list(training.target_layer_ids),
        # Beside that flag it only says how layers are numbered (validation_hook.py): as for a DSpark draft.
        "speculative_algorithm": "DSPARK",
    }


def _confidences(resolved: Resolved) -> str | None:
    """The temperatures of the confidence head: those of the settings, else those beside the draft's weights."""
    speculation = resolved.settings.speculation
    if speculation.calibration_path is not None or speculation.verification != "compact" or resolved.draft is None:
        return speculation.calibration_path
    # Late: it loads torch.
    from sparktier.drafter.calibration.sts import STS_FILE
    from sparktier.serving.engine.speculation.edge_acceptance import draft_file

    found = draft_file(resolved.draft, STS_FILE, speculation.draft_revision)
    return None if found is None else str(found)


def _dspark(speculation: SpeculationSettings, *, confidences: str | None, attention_groups: int) -> dict[str, Any]:
    return {
        "speculative_algorithm": "DSPARK",
        "speculative_dspark_block_size": speculation.block_tokens,
        "speculative_dspark_sps_table_path": speculation.step_cost_path,
        "speculative_dspark_confidence_sts_path": confidences,
        # Required with attention-DP (speculative_hook.py, _handle_dspark).
        "enable_dp_lm_head": True if attention_groups > 1 else None,
    }


def _standalone(speculation: SpeculationSettings) -> dict[str, Any]:
    block = speculation.block_tokens
    return {
        "speculative_algorithm": "STANDALONE",
        "speculative_num_steps": block,
        # A chain. SGLang wants all three or none (speculative_hook.py, _handle_eagle_family).
        "speculative_eagle_topk": None if block is None else 1,
        "speculative_num_draft_tokens": None if block is None else block + 1,
    }


def _cpu(settings: Settings) -> dict[str, Any]:
    return {
        "disable_overlap_schedule": True,
        "disable_cuda_graph": True,
        # An idle rank would keep a core busy. With several attention groups each sleeps on its own requests, and one
        # that wakes then waits for the others' second of sleep.
        "sleep_on_idle": settings.replicas.attention_data_parallel == 1,
        "max_total_tokens": settings.replicas.kv_tokens or max(DEFAULT_CPU_KV_TOKENS, kv_tokens_of_longest(settings)),
    }
