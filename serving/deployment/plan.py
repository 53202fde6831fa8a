"""What a deployment would do, by arithmetic: SGLang's arguments, bytes of a rank, how things divide, what is refused.

Pure once the models' sizes are known. Every number is computed, none is measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparktier.configs.errors import ArtifactError
from sparktier.configs.rules.device import rows_per_rank
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import LADDERS
from sparktier.serving.deployment.engine_args import engine_environment, engine_kwargs
from sparktier.serving.deployment.memory import (
    MIB,
    RankMemory,
    estimated_reserve_bytes,
    graph_mib,
    graph_table_bytes,
    graphs_of_a_size,
    rank_memory,
)
from sparktier.serving.deployment.model_sizes import ModelFacts, model_facts, read_config
from sparktier.serving.deployment.resolved import GPU_NODE, resolve_without_weights
from sparktier.serving.engine.targets.target_support import facts_of, target_refusal

_GIB = 1 << 30


@dataclass(frozen=True)
class PlanLine:
    """One line of the plan."""

    section: str
    name: str
    value: str | int | float
    note: str = ""


@dataclass(frozen=True)
class DeploymentPlan:
    """The lines of a plan, and the reasons, if any, why it can't run."""

    lines: tuple[PlanLine, ...]
    refusals: tuple[PlanLine, ...]


def plan_deployment(
    settings: Settings, *, model_config: Path | None = None, draft_config: Path | None = None
) -> DeploymentPlan:
    """Return the plan of `settings`; the files name the `config.json` of models that are not at hand.

    Raises:
        ArtifactError: a model's config is not at hand, or is of an unknown kind.
        ConfigError: the settings can't run on their device.
    """
    config = read_config(settings.model.path, model_config)
    try:
        model = model_facts(config)
    except ArtifactError:
        # A kind that is refused anyway need not be laid out.
        if unsupported := tuple(_unsupported_target(settings, config)):
            return DeploymentPlan((), unsupported)
        raise
    draft_path = settings.speculation.draft_path
    draft = model_facts(read_config(draft_path, draft_config)) if draft_path else None
    return plan_of(settings, model, draft)


def plan_of(settings: Settings, model: ModelFacts, draft: ModelFacts | None) -> DeploymentPlan:
    """Return the plan of `settings` for a `model` and, where it has a checkpoint of its own, a `draft`."""
    memory = rank_memory(settings, model, draft)
    lines = (
        *_arguments(settings),
        *_model_lines(model),
        *_memory_lines(settings, memory),
        *_graph_lines(settings, model, draft),
        *_division_lines(settings, model),
        *_placement_lines(settings),
        *_cut_lines(settings, draft),
    )
    return DeploymentPlan(lines, tuple(_refusals(settings, model, draft, memory)))


def _arguments(settings: Settings) -> Iterator[PlanLine]:
    resolved = resolve_without_weights(settings, GPU_NODE)
    for name, value in sorted(engine_kwargs(resolved, replica=0).items()):
        yield PlanLine("SGLang arguments", name, value if isinstance(value, int | float) else str(value))
    for name, value in sorted(engine_environment(resolved).items()):
        yield PlanLine("environment", name, value)


def _model_lines(model: ModelFacts) -> Iterator[PlanLine]:
    yield PlanLine("model", "parameters", sum(model.parameters.values()))
    for role, count in model.parameters.items():
        yield PlanLine("model", f"parameters: {role.value}", count)


def _memory_lines(settings: Settings, memory: RankMemory) -> Iterator[PlanLine]:
    def gib(name: str, size: float, note: str = "") -> PlanLine:
        return PlanLine("memory of a rank", name, round(size / _GIB, 2), note)

    yield gib("weights_gib", memory.weights)
    yield gib("draft_gib", memory.draft)
    if memory.penalties:
        yield gib("penalties_gib", memory.penalties, "counts of emitted tokens for each request that may run")
    if memory.kv_tokens is not None:
        yield gib("kv_gib", memory.kv_tokens * memory.kv_token)
    if memory.total is not None and memory.reserved is not None:
        estimate = estimated_reserve_bytes(settings)
        note = "less than SGLang estimates that it needs" if memory.reserved < estimate else ""
        yield gib("reserved_gib", memory.reserved, note)
        yield gib("sglang_estimate_gib", estimate, "of activations, graphs and buffers, which reserved_gib is for")
        yield gib("graphs_gib", graph_mib(settings) * MIB, "part of that estimate")
        yield gib("accelerator_gib", memory.total)
    yield PlanLine("KV cache", "bytes_per_token", round(memory.kv_token))
    if memory.kv_tokens is not None:
        yield from _capacity_lines(settings, memory.kv_tokens)


def _graph_lines(settings: Settings, model: ModelFacts, draft: ModelFacts | None) -> Iterator[PlanLine]:
    block = draft.draft_block if draft else None
    size = graph_table_bytes(settings, model, draft)
    if not size or block is None:
        return
    note = "page tables and masks of FlashInfer's graphs; not in SGLang's estimate"
    yield PlanLine("memory of a rank", "graph_tables_gib", round(size / _GIB, 2), note)
    graphs = graphs_of_a_size(settings, block)
    parts = ", ".join(f"{number} {what}" for what, number in graphs.items())
    note = f"for each number of requests: {parts}; plans take 8 MiB for each draft graph, and 8 for all verify graphs"
    yield PlanLine("memory of a rank", "graphs_of_a_size", sum(graphs.values()), note)


def _capacity_lines(settings: Settings, kv_tokens: int) -> Iterator[PlanLine]:
    replicas = settings.replicas
    yield PlanLine("KV cache", "tokens_per_attention_group", kv_tokens)
    yield PlanLine("KV cache", "tokens_per_replica", kv_tokens * replicas.attention_data_parallel)
    if settings.model.context_tokens:
        yield PlanLine("KV cache", "longest_requests_per_group", kv_tokens // settings.model.context_tokens)
    if replicas.max_running_requests:
        running = replicas.max_running_requests // replicas.attention_data_parallel
        yield PlanLine("KV cache", "tokens_per_running_request", kv_tokens // max(1, running), "with all slots taken")


def _division_lines(settings: Settings, model: ModelFacts) -> Iterator[PlanLine]:
    replicas = settings.replicas
    attention = replicas.attention_tensor_parallel
    yield PlanLine("division", "query_heads_per_rank", model.heads / attention)
    if not model.latent_attention:
        copies = attention // model.kv_heads if attention > model.kv_heads else 1
        note = f"each key and value head is held {copies} times" if copies > 1 else ""
        yield PlanLine("division", "kv_heads_per_rank", max(1.0, model.kv_heads / attention), note)
    if model.experts:
        yield PlanLine("division", "experts_per_rank", _experts_held(settings, model) / replicas.expert_parallel)
        yield PlanLine("division", "expert_width_per_rank", _expert_width(settings, model))
    rows = rows_per_rank(settings)
    if rows is not None:
        yield PlanLine("division", "most_rows_per_rank", rows, "sent to experts in one decode or verify step")


def _placement_lines(settings: Settings) -> Iterator[PlanLine]:
    replicas = settings.replicas
    per_node = replicas.tensor_parallel // replicas.nodes
    yield PlanLine("Ray", "placement_groups", replicas.count, "one for each replica")
    yield PlanLine(
        "Ray", "bundles_per_group", replicas.tensor_parallel, "each {GPU: 1}, rank 0 on the replica's own node"
    )
    yield PlanLine("Ray", "nodes_per_group", replicas.nodes)
    yield PlanLine("Ray", "gpus_per_node", per_node)
    yield PlanLine("Ray", "gpus", replicas.ranks, "of all replicas")


def _cut_lines(settings: Settings, draft: ModelFacts | None) -> Iterator[PlanLine]:
    """Lengths that the settings ask for and the draft wasn't trained for."""
    speculation, block = settings.speculation, draft.draft_block if draft else None
    if speculation.method not in LADDERS or block is None:
        return
    for name, tokens in (("block_tokens", speculation.block_tokens), ("short_tokens", speculation.short_tokens)):
        if tokens is not None and tokens > block:
            yield PlanLine(
                "speculation", name, block, f"cut from {tokens}: the draft was trained for blocks of {block}"
            )


def _refusals(
    settings: Settings, model: ModelFacts, draft: ModelFacts | None, memory: RankMemory
) -> Iterator[PlanLine]:
    yield from _undivided(settings, model)
    yield from _too_large(settings, model, memory)
    yield from _misfit_draft(settings, model, draft)
    yield from _unreadable_layers(settings, model)
    yield from _unsupported_target(settings, model.config)
    trims, backend = settings.speculation.verification == "compact", settings.replicas.attention_backend
    if trims and backend == "flashinfer" and not model.latent_attention:
        # sglang/srt/layers/attention/flashinfer_backend.py raises at capture.
        yield _refused("attention_backend", "flashinfer can't capture trimmed verification; use fa3, or static")


def _undivided(settings: Settings, model: ModelFacts) -> Iterator[PlanLine]:
    replicas = settings.replicas
    attention = replicas.attention_tensor_parallel
    if model.heads % attention:
        yield _refused("heads", f"{model.heads} query heads can't be split over {attention} ranks")
    kv_heads = model.kv_heads
    if not model.latent_attention and kv_heads % attention and attention % kv_heads:
        yield _refused("kv_heads", f"{kv_heads} key and value heads can't be split over or copied to {attention} ranks")
    if not model.experts:
        if replicas.expert_parallel > 1:
            yield _refused("expert_parallel", "the model has no experts to share out; set it to 1")
        return
    if _experts_held(settings, model) % replicas.expert_parallel:
        yield _refused(
            "experts",
            f"{_experts_held(settings, model)} experts can't be shared out to {replicas.expert_parallel} groups",
        )
    width, block = _expert_width(settings, model), _fp8_block(settings, model)
    if width % 1 or (block and width % block):
        yield _refused("expert_width", f"experts {width:g} wide are no multiple of the FP8 block ({block or 1})")


def _too_large(settings: Settings, model: ModelFacts, memory: RankMemory) -> Iterator[PlanLine]:
    context, kv_tokens = settings.model.context_tokens, memory.kv_tokens
    longest = model.number("max_position_embeddings")
    if context and longest and context > longest:
        yield _refused("context_tokens", f"the model was trained for {longest} tokens, not {context}")
    if memory.total is not None and memory.needed > memory.total:
        short = (memory.needed - memory.total) / _GIB
        yield _refused("memory", f"a rank lacks {short:.1f} GiB; use more ranks, a smaller cache or a quantised model")
    elif kv_tokens is not None and kv_tokens < (context or 1):
        yield _refused("kv_tokens", f"{kv_tokens} tokens of cache hold no request of {context or 1} tokens")


def _misfit_draft(settings: Settings, model: ModelFacts, draft: ModelFacts | None) -> Iterator[PlanLine]:
    speculation = settings.speculation
    if speculation.method == "dspark_native" and draft is None and not model.dspark_stages:
        yield _refused("draft_path", "the target's checkpoint has no DSpark draft in it; name one")
    if draft is not None and draft.number("vocab_size") != model.number("vocab_size"):
        words = f"{draft.number('vocab_size')} and {model.number('vocab_size')}"
        yield _refused("draft_path", f"draft and target must share a vocabulary (they have {words} entries)")
    block = (draft or model).draft_block
    if speculation.method == "dspark_native" and speculation.block_tokens not in (None, block):
        yield _refused("block_tokens", f"the draft was trained for blocks of {block}")


def _unsupported_target(settings: Settings, config: Mapping[str, Any]) -> Iterator[PlanLine]:
    reason = target_refusal(facts_of(config), settings.speculation.method)
    if reason is not None:
        yield _refused("method", reason)


def _unreadable_layers(settings: Settings, model: ModelFacts) -> Iterator[PlanLine]:
    layers = settings.training.target_layer_ids
    # SGLang captures what a layer gives the next one, or its output where the checkpoint has a DSpark draft in it.
    highest = model.number("num_hidden_layers") - (1 if model.dspark_stages else 2)
    if layers and layers[-1] > highest:
        yield _refused("target_layer_ids", f"layers 0 to {highest} of the model can be read, not {layers[-1]}")


def _experts_held(settings: Settings, model: ModelFacts) -> int:
    redundant = settings.replicas.sglang_args.get("ep_num_redundant_experts") or 0
    return model.experts + (redundant if isinstance(redundant, int) else 0)


def _expert_width(settings: Settings, model: ModelFacts) -> float:
    within_group = settings.replicas.tensor_parallel // settings.replicas.expert_parallel
    return model.number("moe_intermediate_size", "intermediate_size") / within_group


def _fp8_block(settings: Settings, model: ModelFacts) -> int | None:
    declared = model.config.get("quantization_config") or {}
    method = settings.model.quantization or declared.get("quant_method")
    sizes = declared.get("weight_block_size")
    return int(sizes[0]) if method == "fp8" and sizes and model.config.get("expert_dtype") != "fp4" else None


def _refused(name: str, reason: str) -> PlanLine:
    return PlanLine("refused", name, "refused", reason)
