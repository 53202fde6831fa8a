"""The shape of a draft model, and its `config.json` in the layout that DeepSpec writes and SGLang reads.

Owns the names of the keys, and refuses values that we can't run.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.model.layouts import (
    ARCHITECTURES,
    METHODS,
    from_speculators,
    is_speculators,
    refused,
    require_known,
)

MarkovType = Literal["vanilla", "gated", "rnn"]
Method = Literal["dspark", "eagle3", "mtp"]

# transformers' own for every architecture here.
_DEFAULT_THETA = 10_000.0
# Keys that SGLang looks for in these objects before the top level; the later object wins.
_NESTED = {
    "dflash_config": (
        "block_size", "num_target_layers", "target_layer_ids", "mask_token_id", "markov_rank", "markov_head_type"
    ),
    "dspark_config": ("mask_token_id", "markov_rank", "markov_head_type"),
}  # fmt: skip
# Unused once mask_token_id is there, or read by the trainer alone.
_UNREAD = ("mask_token", "num_anchors")
_PLAIN = "is not run by our draft layers"
# Keys that change what SGLang's draft model computes, with the values under which it computes what ours does.
_NEUTRAL: dict[str, tuple[tuple[object, ...], str]] = {
    "hidden_act": (("silu",), "must be silu"),
    "is_causal": ((None, False), "must be false: a block attends to all of itself"),
    "sample_from_anchor": ((True,), "must be true: row k predicts offset k+1"),
    "partial_rotary_factor": ((1.0,), "must be 1: whole heads are rotated"),
    "rope_is_neox_style": ((True,), "must be true: heads are rotated by halves"),
    "is_neox_style": ((True,), "must be true: heads are rotated by halves"),
    "use_gemma_norm": ((False,), _PLAIN),
    "attention_sink_bias": ((None, False), _PLAIN),
    "attention_value_scale": ((None, 1.0), _PLAIN),
    "conv_kernel_size": ((None, 0), _PLAIN),
    "conv_group_size": ((None, 0), _PLAIN),
    "selector_rank": ((None, 0), _PLAIN),
    "selector_top_k": ((None, 0), _PLAIN),
    "output_multiplier": ((1.0,), _PLAIN),
    "final_logit_softcapping": ((None, 0.0), _PLAIN),
    "projector_type": ((None,), _PLAIN),
    "quantization_config": ((None,), "must be absent: drafts have plain weights"),
    "text_config": ((None,), "must be absent: a draft's keys are at the top level"),
    "dspark_block_size": ((None,), "must be written as block_size"),
    "dspark_markov_rank": ((None,), "must be written as markov_rank"),
    "dspark_markov_head_type": ((None,), "must be written as markov_head_type"),
    "dspark_noise_token_id": ((None,), "must be written as mask_token_id"),
    "dspark_target_layer_ids": ((None,), "must be written as target_layer_ids"),
}


class DraftConfig(BaseModel):
    """A DSpark draft of Qwen3-style layers (DSpark paper section 3; DeepSpec `modeling/dspark/qwen3`).

    `block_size` is gamma: rows of a draft block, so also tokens drafted per round. `target_layer_ids` are 0-based and
    name the hidden states *after* those layers. `markov_rank` 0 without a confidence head is the DFlash baseline.
    `method` eagle3 and mtp are the baselines of `recurrent.py`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    method: Method = "dspark"
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0, multiple_of=2)
    intermediate_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)
    max_position_embeddings: int = Field(default=32_768, gt=0)
    attention_bias: bool = False
    block_size: int = Field(gt=0)
    num_target_layers: int = Field(gt=0)
    # JSON has lists alone.
    target_layer_ids: tuple[int, ...] = Field(min_length=1, strict=False)
    mask_token_id: int = Field(ge=0)
    num_anchors: int = Field(default=512, gt=0)
    markov_rank: int = Field(default=256, ge=0)
    markov_head_type: MarkovType = "vanilla"
    enable_confidence_head: bool = True
    confidence_head_with_markov: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = self.target_layer_ids
        if list(ids) != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= self.num_target_layers:
            raise ValueError(f"target_layer_ids {ids} must rise strictly within 0..{self.num_target_layers - 1}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.mask_token_id >= self.vocab_size:
            raise ValueError(f"mask_token_id {self.mask_token_id} is outside the vocabulary of {self.vocab_size}")
        if self.enable_confidence_head and self.confidence_head_with_markov and not self.markov_rank:
            raise ValueError("confidence_head_with_markov needs markov_rank above 0")
        if self.method != "dspark" and (self.markov_rank or self.enable_confidence_head or self.num_hidden_layers > 1):
            raise ValueError(f"method {self.method} has one layer and no heads")
        if self.method == "mtp" and self.block_size > 1:
            raise ValueError(f"method mtp drafts 1 token, block_size must be 1, not {self.block_size}")
        return self

    @property
    def feature_size(self) -> int:
        """Width of one position's context features: the chosen layers' hidden states side by side."""
        return len(self.target_layer_ids) * self.hidden_size

    def to_hf(self) -> dict[str, Any]:
        """Return the `config.json` of this draft; SGLang reads every DSpark key at the top level."""
        fields = self.model_dump(mode="json", exclude={"method"})
        architecture = next((name for name, method in METHODS.items() if method == self.method), ARCHITECTURES[0])
        if not self.enable_confidence_head:
            # SGLang takes the mere presence of weights for the switch; DeepSpec leaves this key out as well.
            del fields["confidence_head_with_markov"]
        if not self.markov_rank:
            del fields["markov_head_type"]
        return fields | {
            "architectures": [architecture],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention"] * self.num_hidden_layers,
            "attention_dropout": 0.0,
            "use_cache": True,
        }

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], source: str, target_layers: int | None = None) -> "DraftConfig":
        """Read a `config.json`; `source` names the file in messages.

        `target_layers`, the number of the target's layers, is needed for the layout of `speculators` only.

        Raises:
            ArtifactError: the file describes no DSpark draft, or one with parts that we do not run.
        """
        if is_speculators(raw):
            raw = from_speculators(raw, source, target_layers)
        merged = dict(raw) | {key: value for part in _NESTED for key, value in _nested(raw, part, source).items()}
        _refuse_foreign_parts(merged, source)
        merged["rope_theta"] = _rope_theta(merged, source)
        merged["method"] = next((METHODS[name] for name in raw["architectures"] if name in METHODS), "dspark")
        merged.setdefault("markov_rank", 0)
        merged.setdefault("confidence_head_with_markov", bool(merged["markov_rank"]))
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "config"
            raise ArtifactError(
                f"{source}: {where}: {first['msg']} (found {first['input']!r:.80}). Use a DSpark draft's config.json."
            ) from None


def _nested(raw: Mapping[str, Any], part: str, source: str) -> Mapping[str, Any]:
    """Return what a config nests under `part`, once all of it is what SGLang reads there."""
    found = raw.get(part)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise refused(source, part, "must be an object", found)
    for key, value in found.items():
        if key not in (*_NESTED[part], *_NEUTRAL, *_UNREAD):
            raise refused(source, f"{part}.{key}", f"is not read: there, only {', '.join(_NESTED[part])} are", value)
        # The engine's Markov head is built of the top level's.
        if key.startswith("markov_") and value != raw.get(key, value):
            raise refused(source, f"{part}.{key}", f"must be {raw[key]!r} as at the top level", value)
    return found


def _rope_theta(raw: Mapping[str, Any], source: str) -> object:
    """Return the rope base from transformers' old (`rope_theta`) or new (`rope_parameters`) layout, in its order."""
    theta = raw.get("rope_theta", _DEFAULT_THETA)
    for name in ("rope_parameters", "rope_scaling"):
        parameters = raw.get(name)
        if parameters is None:
            continue
        if not isinstance(parameters, Mapping):
            raise refused(source, name, "must be an object", parameters)
        for key, value in parameters.items():
            if key in ("rope_type", "type") and value != "default":
                raise refused(
                    source, f"{name}.{key}", "must be default: draft layers use plain rotary positions", value
                )
            if key not in ("rope_type", "type", "rope_theta") and (key, value) != ("partial_rotary_factor", 1.0):
                raise refused(source, f"{name}.{key}", "is not run: draft layers use plain rotary positions", value)
        theta = parameters.get("rope_theta", theta)
    return float(theta) if type(theta) is int else theta


def _refuse_foreign_parts(raw: Mapping[str, Any], source: str) -> None:
    require_known(raw, source)
    for key, (neutral, rule) in _NEUTRAL.items():
        if raw.get(key, neutral[0]) not in neutral:
            raise refused(source, key, rule, raw[key])
    layers = raw.get("layer_types")
    if layers is None and raw.get("use_sliding_window"):
        raise refused(source, "use_sliding_window", "must be false, or layer_types say full_attention", True)
    if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
        raise refused(source, "layer_types", "must be full_attention: draft layers attend to the whole block", layers)
    if raw.get("markov_rank") and "markov_head_type" not in raw:
        raise refused(source, "markov_head_type", "must be named with markov_rank", None)
