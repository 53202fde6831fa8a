"""Decides, by one table over facts of its config, whether a method of speculation serves a target losslessly.

Pure: both a starting worker and the plan of a deployment use it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sparktier.configs.errors import ArtifactError

# fmt: off
_RECURRENT_LAYERS = frozenset((
    "linear_attention", "lightning_attention", "lightning-attn", "gated_deltanet", "kda", "mamba", "mamba2",
    "recurrent", "conv", "hybrid",
))
_WINDOW_LAYERS = frozenset(("sliding_attention", "chunked_attention", "local", "local_attention"))
# Model types that are recurrent in every version of their config, or whose config does not name its layers.
_RECURRENT_TYPES = frozenset((
    "mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h", "zaya", "jamba", "bamba", "zamba", "zamba2", "rwkv",
    "recurrent_gemma", "lfm2", "lfm2_moe", "lfm2_vl", "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe",
    "qwen3_5_moe_text", "intern_s2_preview", "jet_nemotron", "jet_vlm", "kimi_linear", "kimi_k3", "glm5_next",
    "bailing_hybrid", "bailing_moe_linear", "minimax_m1", "minimax_text_01", "gigachat3_5",
))
# fmt: on
# Keys of recurrent layers in configs that don't list layers by type.
_RECURRENT_KEYS = (
    "mamba_d_state",
    "mamba_num_heads",
    "ssm_state_size",
    "linear_num_value_heads",
    "linear_attn_config",
    "full_attention_interval",
    "conv_L_cache",
    "mamba2_cache_params",
)
# Multimodal configs keep the language model's config under one of these keys.
_TEXT_SECTIONS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True)
class TargetFacts:
    """The properties of a target that decide which methods may speculate for it.

    Args:
        recurrent: some layers keep a state that every token changes, as Mamba and linear attention do.
        token_history: embeddings depend on earlier tokens, as n-gram embeddings do.
        compressed: the cache holds sums over tokens, as DeepSeek-V4's does.
        sectioned_positions: rotary positions have three sections, as in models for images.
        latent: keys and values are one latent vector (MLA).
        windowed: some layers see only the last tokens, or those of their own chunk.
    """

    recurrent: bool = False
    token_history: bool = False
    compressed: bool = False
    sectioned_positions: bool = False
    latent: bool = False
    windowed: bool = False


@dataclass(frozen=True)
class _Limit:
    applies: Callable[[TargetFacts], bool]
    methods: tuple[str, ...]
    reason: str
    instead: str


_LADDERS = ("chain", "tree", "ngram")
_TABLE = (
    _Limit(
        lambda target: target.recurrent,
        _LADDERS,
        "has recurrent layers (Mamba, linear attention), whose state only SGLang's own worker commits after a step",
        "dspark_native or none",
    ),
    _Limit(
        lambda target: target.token_history,
        _LADDERS,
        "has n-gram embeddings, whose table of tokens only SGLang's own worker updates after a step",
        "dspark_native or none",
    ),
    _Limit(
        lambda target: target.compressed,
        _LADDERS,
        "has a compressed cache, which only SGLang's own worker is known to roll back",
        "dspark_native or none",
    ),
    _Limit(
        lambda target: target.sectioned_positions,
        _LADDERS,
        "has rotary positions in sections (mrope), which SGLang can't lay out for requests with unequal rows",
        "dspark_native with verification static, or none",
    ),
    _Limit(
        lambda target: target.latent,
        ("tree",),
        "has latent attention (MLA), which takes no tree mask: siblings would see each other",
        "dspark_native or chain",
    ),
    _Limit(
        lambda target: target.windowed,
        ("tree",),
        "has sliding-window layers, which count cache slots where a tree's rows need depths",
        "chain",
    ),
)


def target_refusal(target: TargetFacts, method: str) -> str | None:
    """Return why `method` can't serve `target` losslessly and which method can, or None if it can."""
    limit = next((limit for limit in _TABLE if method in limit.methods and limit.applies(target)), None)
    return None if limit is None else f"the target {limit.reason}; use speculation.method {limit.instead}"


def require_supported(target: TargetFacts, method: str, name: str) -> None:
    """Raise ArtifactError if `method` would change the output of the target `name`."""
    reason = target_refusal(target, method)
    if reason:
        raise ArtifactError(f"speculation.method: {method} can't serve {name} losslessly: {reason}.")


def facts_of(config: Mapping[str, Any]) -> TargetFacts:
    """Return the facts in a `config.json`; in a multimodal one, the language model's section comes first."""
    text = next((section for key in _TEXT_SECTIONS if isinstance(section := config.get(key), Mapping)), {})
    merged = {**config, **{key: value for key, value in text.items() if value is not None}}
    kind = str(merged.get("model_type") or "")
    return TargetFacts(
        recurrent=_is_recurrent(merged, kind),
        token_history=bool(merged.get("use_ngram_embedding") or merged.get("engram_layer_ids"))
        or any(merged.get(key) is not None for key in ("ngram_vocab_size_ratio", "oe_vocab_size_ratio")),
        compressed=kind.startswith("deepseek_v4") or bool(merged.get("compress_ratios")),
        sectioned_positions=any("mrope_section" in rope for rope in _rotary(merged)),
        latent=merged.get("kv_lora_rank") is not None,
        windowed=_is_windowed(merged),
    )


def _is_recurrent(config: Mapping[str, Any], kind: str) -> bool:
    layers = _layer_types(config)
    if kind in _RECURRENT_TYPES or layers & _RECURRENT_LAYERS:
        return True
    if "M" in str(config.get("hybrid_override_pattern") or "") or 0 in (config.get("attn_type_list") or ()):
        return True
    return not layers and any(config.get(key) for key in _RECURRENT_KEYS)


def _is_windowed(config: Mapping[str, Any]) -> bool:
    layers = _layer_types(config)
    if config.get("attention_chunk_size"):
        return not layers or bool(layers & _WINDOW_LAYERS)
    if config.get("use_sliding_window") is False:
        return False
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings")
    if not isinstance(window, int) or window <= 0 or (isinstance(longest, int) and window >= longest):
        return False
    if layers:
        return bool(layers & _WINDOW_LAYERS)
    # In Qwen's configs the layers below `max_window_layers` have full attention, and `use_sliding_window` is set.
    full, count = config.get("max_window_layers"), config.get("num_hidden_layers")
    if config.get("use_sliding_window") is None or not isinstance(full, int) or not isinstance(count, int):
        return True
    return full < count


def _layer_types(config: Mapping[str, Any]) -> frozenset[str]:
    named = (config.get(key) for key in ("layer_types", "layers_block_type", "mixer_types"))
    return frozenset(str(kind) for kinds in named if isinstance(kinds, list | tuple) for kind in kinds)


def _rotary(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), Mapping):
            yield config[key]
