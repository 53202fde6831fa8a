"""The layouts that drafts are published in: DeepSpec's is read as it is, `speculators`' is turned into it, others are
refused by name.

Facts: vllm-project/speculators `models/dspark/config.py`, and vLLM's `speculators/algos.py` for its keys.
"""

from collections.abc import Mapping
from typing import Any

from sparktier.configs.errors import ArtifactError

ARCHITECTURES = ("Qwen3DSparkModel", "DSparkDraftModel", "LingDSparkModel")
# Drafts of ours that no engine serves: baselines.
METHODS = {"SparktierEagle3Model": "eagle3", "SparktierMtpModel": "mtp"}
SPECULATORS_KEY = "speculators_model_type"

_OTHER_LAYERS = "it needs layers that our draft model has not"
_OTHER_METHOD = "it is no DSpark draft"
# Why each published family is not run, by the name in `architectures`.
_REFUSED = {
    "Gemma4DSparkModel": f"{_OTHER_LAYERS}: scaled embeddings, four norms a layer, values made of keys, capped logits",
    "DSparkMiniMaxDraftModel": f"{_OTHER_LAYERS}: MiniMax's",
    "Lfm2DSparkDraftModel": f"{_OTHER_LAYERS}: LFM2's",
    "DeepseekV4ForCausalLMDSpark": "it is a part of its target; speculation.method dspark_native runs it",
    "DFlashDraftModel": f"{_OTHER_METHOD}: DFlash rows predict their own places, the anchor's none",
    "DFlashSpeculator": f"{_OTHER_METHOD}: DFlash rows predict their own places, the anchor's none",
    "Qwen3Eagle3Model": f"{_OTHER_METHOD} but one of EAGLE-3",
    "Gemma4Eagle3Model": f"{_OTHER_METHOD} but one of EAGLE-3",
    "LlamaForCausalLMEagle3": f"{_OTHER_METHOD} but one of EAGLE-3",
    "Eagle3Speculator": f"{_OTHER_METHOD} but one of EAGLE-3",
}

# transformers' Qwen3Config leaves its defaults out of a config that it writes as a difference; a test compares.
_QWEN3_DEFAULTS = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "use_sliding_window": False,
}
_HEADS = ("block_size", "mask_token_id", "markov_rank", "markov_head_type", "enable_confidence_head")


def require_known(raw: Mapping[str, Any], source: str) -> None:
    """Refuse a draft of another architecture, naming it.

    Raises:
        ArtifactError: it is no DSpark draft, or one with layers that we do not run.
    """
    named = raw.get("architectures")
    names = named if isinstance(named, list) else []
    if any(name in ARCHITECTURES or name in METHODS for name in names):
        return
    reasons = [f"{name} is not run: {_REFUSED[name]}" for name in names if isinstance(name, str) and name in _REFUSED]
    rule = reasons[0] if reasons else f"a draft is one of {', '.join(ARCHITECTURES)}"
    raise ArtifactError(f"{source}: architectures: {rule} (found {named!r:.80}). Give a DSpark draft.")


def refused(source: str, key: str, rule: str, value: object) -> ArtifactError:
    """Return the error for a key of a config whose value we can't run."""
    return ArtifactError(f"{source}: {key} {rule} (found {value!r:.80}). Train a draft without it, or mend the key.")


def is_speculators(raw: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` is in the layout of vllm-project/speculators."""
    return SPECULATORS_KEY in raw


def from_speculators(raw: Mapping[str, Any], source: str, target_layers: int | None) -> dict[str, Any]:
    """Return the same draft's config in DeepSpec's layout.

    Args:
        raw: a `config.json` with `speculators_model_type`.
        source: names it in messages.
        target_layers: how many layers the target has, which this layout doesn't tell.

    Raises:
        ArtifactError: it is no DSpark draft, uses the other slot convention or a smaller vocabulary, or the target is
            not known.
    """
    _require_runnable_speculator(raw, source)
    layer = raw.get("transformer_layer_config")
    if not isinstance(layer, Mapping) or layer.get("model_type", "qwen3") != "qwen3":
        found = layer.get("model_type") if isinstance(layer, Mapping) else layer
        raise refused(source, "transformer_layer_config", "must describe layers of qwen3", found)
    flat = _QWEN3_DEFAULTS | dict(layer)
    _require_full_width(raw, flat, source)
    if target_layers is None:
        raise refused(source, SPECULATORS_KEY, "is read beside its target alone: give the target", raw[SPECULATORS_KEY])
    heads = {key: raw[key] for key in (*_HEADS, "confidence_head_with_markov") if key in raw}
    if missing := [key for key in _HEADS if key not in heads]:
        raise refused(source, missing[0], "must be written", None)
    return {
        **flat,
        **heads,
        "architectures": [ARCHITECTURES[1]],
        "num_target_layers": target_layers,
        "target_layer_ids": _layers_after(raw, source),
    }


def _require_runnable_speculator(raw: Mapping[str, Any], source: str) -> None:
    kind = raw[SPECULATORS_KEY]
    if kind != "dspark":
        raise refused(source, SPECULATORS_KEY, "must be dspark", kind)
    if raw.get("sample_from_anchor") is not True:
        rule = (
            "must be true: row k predicts offset k+1; where it is false or not written, the anchor's row drafts nothing"
        )
        raise refused(source, "sample_from_anchor", rule, raw.get("sample_from_anchor"))
    for key, neutral in (("projector_type", (None, "dflash")), ("shift_label", (None, False))):
        if raw.get(key) not in neutral:
            raise refused(source, key, "is not run by our draft layers", raw[key])


def _require_full_width(raw: Mapping[str, Any], flat: Mapping[str, Any], source: str) -> None:
    for key, wanted in (("draft_vocab_size", flat["vocab_size"]), ("target_hidden_size", flat["hidden_size"])):
        if raw.get(key, wanted) not in (wanted, None):
            raise refused(source, key, f"must be the target's {wanted}", raw[key])


def _layers_after(raw: Mapping[str, Any], source: str) -> list[int]:
    """This layout counts hidden states, the embedding's first; DeepSpec the layers after which they are taken."""
    ids = raw.get("aux_hidden_state_layer_ids")
    if not isinstance(ids, list) or not ids or any(type(layer) is not int for layer in ids):
        raise refused(source, "aux_hidden_state_layer_ids", "must be a list of whole numbers", ids)
    return [layer - 1 for layer in ids]
