"""Bytes that one rank holds: weights, draft, a token of KV cache, and what SGLang keeps free for the rest. Pure.

Weights are exact for their format up to scales and padding. What SGLang reserves is its own estimate, copied from
`sglang/srt/arg_groups/memory_hook.py` (0.5.23): nothing here was measured on a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import LADDERS
from sparktier.serving.deployment.model_sizes import ModelFacts, Role
from sparktier.serving.engine.rank_options import DEFAULT_RUNNING_REQUESTS, LadderOptions, penalty_table_bytes

MIB = 1 << 20
# Total memory as nvidia-smi reports it.
ACCELERATOR_BYTES = {
    "A100-80GB": 81920 * MIB,
    "H20": 97871 * MIB,
    "H100": 81559 * MIB,
    "H200": 143771 * MIB,
    "B200": 183359 * MIB,
}
_DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0}

_FP8 = 1.0 + 4 / (128 * 128)  # a float32 scale for each 128x128 block
_FP4 = 0.5 + 1 / 32  # an 8-bit scale for 32 values
_INT4 = 0.5 + 2.5 / 128  # a 16-bit scale and a 4-bit zero for 128 values
# Bytes of a quantised weight: (in experts, in other matrices). None: stays in the model's own format.
_QUANTISED: Mapping[str, tuple[float, float | None]] = {
    "fp8": (_FP8, _FP8),
    "modelopt_fp8": (1.0, 1.0),
    "w8a8_fp8": (1.0, 1.0),
    "w8a8_int8": (1.0, 1.0),
    "compressed-tensors": (1.0, 1.0),
    "awq": (_INT4, _INT4),
    "awq_marlin": (_INT4, _INT4),
    "gptq": (_INT4, _INT4),
    "gptq_marlin": (_INT4, _INT4),
    "modelopt_fp4": (0.5 + 1 / 16, 0.5 + 1 / 16),
    "mxfp4": (_FP4, None),
    "w4afp8": (_INT4, _FP8),
}
_NEVER_QUANTISED = (Role.EMBEDDING, Role.HEAD, Role.NORMS)


@dataclass(frozen=True)
class RankMemory:
    """One rank, in bytes. What depends on the accelerator is None unless the settings name one."""

    weights: float
    draft: float
    penalties: int
    """Tables of what each running request has emitted, for penalties under `chain` and `tree`."""
    kv_token: float
    """One token of cache, the draft's included."""
    total: int | None
    reserved: float | None
    """Left free by `memory_frac`, or by SGLang's estimate of what else it needs."""
    kv_tokens: int | None
    """Tokens of cache that fit, or that the settings ask for."""

    @property
    def needed(self) -> float:
        """Everything together, with the cache that was asked for or that fits."""
        return self.weights + self.draft + self.penalties + (self.reserved or 0) + (self.kv_tokens or 0) * self.kv_token


def rank_memory(settings: Settings, model: ModelFacts, draft: ModelFacts | None) -> RankMemory:
    """Return what a rank of `settings` holds of `model` and of a `draft` with its own checkpoint."""
    weights = weight_bytes(settings, model, _method(settings, model))
    draft_bytes = _bundled_draft_bytes(settings, model)
    kv_token = kv_bytes_per_token(settings, model)
    if draft is not None:
        draft_bytes += weight_bytes(settings, draft, None)
        kv_token += kv_bytes_per_token(settings, draft)
    penalties = _penalty_bytes(settings, model)
    accelerator = settings.replicas.accelerator
    total = ACCELERATOR_BYTES[accelerator] if accelerator else None
    reserved = None if total is None else _reserved_bytes(settings, total)
    kv_tokens = settings.replicas.kv_tokens
    if kv_tokens is None and total is not None and reserved is not None:
        kv_tokens = max(0, int((total - reserved - weights - draft_bytes - penalties) / kv_token))
    return RankMemory(weights, draft_bytes, penalties, kv_token, total, reserved, kv_tokens)


def _penalty_bytes(settings: Settings, model: ModelFacts) -> int:
    if settings.speculation.method not in LADDERS:
        return 0
    running = settings.replicas.max_running_requests or DEFAULT_RUNNING_REQUESTS
    # SGLang's pool has a slot for padding beside those of requests.
    return penalty_table_bytes(slots=running + 1, vocab=model.number("vocab_size"))


def weight_bytes(settings: Settings, model: ModelFacts, method: str | None) -> float:
    """Return the bytes of `model`'s weights on one rank, quantised by `method` (SGLang's name)."""
    own = dtype_bytes(settings, model)
    return sum(
        count * _bytes_each(role, method, own, model) / _ways(role, settings, model)
        for role, count in model.parameters.items()
    ) + _redundant_expert_bytes(settings, model, method, own)


def dtype_bytes(settings: Settings, model: ModelFacts) -> float:
    """Return the bytes of an unquantised weight."""
    if settings.model.dtype != "auto":
        return _DTYPE_BYTES[settings.model.dtype]
    declared = model.config.get("torch_dtype") or model.config.get("dtype")
    # SGLang loads a float32 checkpoint as float16, so anything unquantised takes two bytes.
    return 2.0 if declared not in _DTYPE_BYTES or declared == "float32" else _DTYPE_BYTES[declared]


def kv_bytes_per_token(settings: Settings, model: ModelFacts) -> float:
    """Return the bytes of cache that one token takes on one rank."""
    each = _DTYPE_BYTES.get(settings.model.kv_dtype, dtype_bytes(settings, model))
    if model.config.get("model_type") == "deepseek_v4":
        return _deepseek_v4_token_bytes(settings, model)
    if model.latent_attention:
        return model.layers * (model.number("kv_lora_rank") + model.number("qk_rope_head_dim")) * each
    heads = max(1, model.kv_heads // settings.replicas.attention_tensor_parallel)
    return 2 * model.layers * heads * model.head_dim * each


def _reserved_bytes(settings: Settings, total: int) -> float:
    frac = settings.replicas.memory_frac
    return estimated_reserve_bytes(settings) if frac is None else total * (1 - frac)


def estimated_reserve_bytes(settings: Settings) -> float:
    """Return SGLang's estimate of what a GPU rank needs besides weights and cache: activations, graphs, buffers."""
    replicas = settings.replicas
    chunk = (replicas.chunked_prefill_tokens or 8192) // replicas.attention_data_parallel
    mib = 512 + 1.5 * max(chunk, 2048) + replicas.tensor_parallel / 8 * 1024 + graph_mib(settings)
    all_to_all_mib = 2048 if replicas.moe_all_to_all == "deepep" else 0
    return (max(mib, 10 * 1024) + all_to_all_mib) * MIB


def graph_mib(settings: Settings) -> float:
    """Return SGLang's estimate of memory for CUDA graphs of decode and verify steps (`reserve_for_graph_mb`)."""
    replicas = settings.replicas
    most = 256 if replicas.tensor_parallel < 4 else 512
    batch = min(most, replicas.max_running_requests or most)
    groups = replicas.attention_data_parallel
    padding = 0.0 if groups == 1 else batch * groups * (4.5 if batch > 300 else 3.0)
    return batch * 2 + padding


def graph_table_bytes(settings: Settings, model: ModelFacts, draft: ModelFacts | None) -> int:
    """Return what FlashInfer's graphs read beside the cache under a ladder, as SGLang allocates it.

    These are 4 bytes of page table and 1 of mask for each row of the largest verify and draft graphs, and each token of
    the longest context.

    Not in SGLang's estimate. Each of a draft's graphs also has a plan of 8 MiB, as much of it pinned on the host; the
    graphs of all verify passes share one.
    """
    speculation, block = settings.speculation, draft.draft_block if draft else None
    if speculation.method not in LADDERS or block is None:
        return 0
    most = min(
        256 if settings.replicas.tensor_parallel < 4 else 512,
        settings.replicas.max_running_requests or DEFAULT_RUNNING_REQUESTS,
    )
    block = min(speculation.block_tokens or block, block)
    rows = max(block + 1, speculation.tree_rows if speculation.method == "tree" else 0)
    context = settings.model.context_tokens or model.number("max_position_embeddings")
    return most * (rows + block) * context * (4 + 1)


def graphs_of_a_size(settings: Settings, block_tokens: int) -> dict[str, int]:
    """Return how many graphs a ladder captures for each number of requests, by what they run.

    Drafts drawn by the ratio rule end with the draft's layers. Attention groups have SGLang's verify graphs alone.
    """
    speculation = settings.speculation
    block = min(speculation.block_tokens or block_tokens, block_tokens)
    trees = speculation.method == "tree"
    chains = LadderOptions(short_tokens=speculation.short_tokens).chain_rows(block)
    grouped = settings.replicas.attention_data_parallel > 1
    return {
        "draft": 1 if speculation.accept_rule == "ratio" else 1 + trees,
        "verify by rows in all": 1 + trees,
        "verify by rows of a request": 0 if grouped else len(chains) + trees,
    }


def _method(settings: Settings, model: ModelFacts) -> str | None:
    declared: Mapping[str, Any] = model.config.get("quantization_config") or {}
    return settings.model.quantization or declared.get("quant_method")


def _bytes_each(role: Role, method: str | None, own: float, model: ModelFacts) -> float:
    if method is None or method not in _QUANTISED or role in _NEVER_QUANTISED:
        return own
    in_experts, elsewhere = _QUANTISED[method]
    if role is Role.EXPERTS:
        return _FP4 if model.config.get("expert_dtype") == "fp4" else in_experts
    return own if elsewhere is None else elsewhere


def _ways(role: Role, settings: Settings, model: ModelFacts) -> float:
    """Return among how many ranks SGLang splits parameters of `role`."""
    replicas = settings.replicas
    ranks, attention = replicas.tensor_parallel, replicas.attention_tensor_parallel
    vocabulary = attention if settings.speculation.method == "dspark_native" else ranks
    return {
        Role.EXPERTS: ranks,
        # With an all-to-all, every rank computes the shared experts of its own rows.
        Role.SHARED_EXPERTS: ranks if replicas.moe_all_to_all == "none" else 1,
        Role.ATTENTION: attention,
        Role.KEY_VALUE: min(attention, model.kv_heads),
        Role.MLP: ranks,
        Role.EMBEDDING: attention,
        Role.HEAD: vocabulary,
        Role.REPLICATED: 1,
        Role.NORMS: 1,
    }[role]


def _redundant_expert_bytes(settings: Settings, model: ModelFacts, method: str | None, own: float) -> float:
    redundant = settings.replicas.sglang_args.get("ep_num_redundant_experts") or 0
    if not model.experts or not isinstance(redundant, int):
        return 0.0
    all_experts = model.parameters.get(Role.EXPERTS, 0) * _bytes_each(Role.EXPERTS, method, own, model)
    return all_experts * redundant / model.experts / settings.replicas.tensor_parallel


def _bundled_draft_bytes(settings: Settings, model: ModelFacts) -> float:
    """Return the bytes of a DSpark draft inside the target's checkpoint: layers like the target's, and two vocabulary
    tables of the Markov head (`sglang/srt/models/deepseek_v4_dspark.py`)."""
    if settings.speculation.method != "dspark_native" or settings.speculation.draft_path or not model.dspark_stages:
        return 0.0
    method, own = _method(settings, model), dtype_bytes(settings, model)
    layer = sum(
        count * _bytes_each(role, method, own, model) / _ways(role, settings, model)
        for role, count in model.per_layer.items()
    )
    markov = 2 * model.number("vocab_size") * model.number("dspark_markov_rank") * own
    return model.dspark_stages * layer + markov


def _deepseek_v4_token_bytes(settings: Settings, model: ModelFacts) -> float:
    """Return the cache of one token of a DeepSeek-V4 model, on every rank alike.

    Each layer keeps a sliding window (a pool of `swa_full_tokens_ratio` of the tokens) and a compressed stream of one
    entry per 4 or 128 tokens; those of 4 have an index and a running state besides. Source: `DSV4PoolConfigurator` in
    `sglang/srt/model_executor/pool_configurator.py`, without page padding.
    """
    ratios = list(model.config["compress_ratios"])[: model.layers]
    rope, width, index = model.number("qk_rope_head_dim"), model.head_dim, model.number("index_head_dim")
    is_bfloat16 = settings.model.kv_dtype == "bfloat16"  # SGLang takes fp8 for everything else
    entry = 2 * width if is_bfloat16 else (width - rope) + 2 * rope + 8  # fp8, rotary part in bfloat16, scales
    ring = 16 if settings.speculation.method != "none" else 8
    state = ring / 256 * 2 * 2 * (width + index) * 4
    window = settings.replicas.sglang_args.get("swa_full_tokens_ratio", 0.1)
    assert isinstance(window, int | float)
    every = window * (entry * len(ratios) + state * ratios.count(4))
    compressed = ratios.count(4) * (entry + index + 4) / 4 + ratios.count(128) * entry / 128
    draft = (model.layers + 1) / model.layers if settings.speculation.method == "dspark_native" else 1.0
    return (every + compressed) * draft
