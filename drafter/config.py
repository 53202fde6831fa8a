"""The shape of a draft model, and its `config.json` in the layout that DeepSpec writes and SGLang reads.

Owns the names of the keys and which values we can run. Knows nothing of tensors, files or training.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparktier.configs.errors import ArtifactError

MarkovType = Literal["vanilla", "gated", "rnn"]
ARCHITECTURES = ("Qwen3DSparkModel", "DSparkDraftModel", "LingDSparkModel")


class DraftConfig(BaseModel):
    """A DSpark draft of Qwen3-style layers (DSpark paper section 3; DeepSpec `modeling/dspark/qwen3`).

    `block_size` is gamma: rows of a draft block, so also tokens drafted per round. `target_layer_ids` are 0-based and
    name the hidden states *after* those layers. `markov_rank` 0 without a confidence head is the DFlash baseline.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

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
    target_layer_ids: tuple[int, ...] = Field(min_length=1)
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
        return self

    @property
    def feature_size(self) -> int:
        """Width of one position's context features: the chosen layers' hidden states side by side."""
        return len(self.target_layer_ids) * self.hidden_size

    def to_hf(self) -> dict[str, Any]:
        """Return the `config.json` of this draft; SGLang reads every DSpark key at the top level."""
        fields = self.model_dump(mode="json")
        if not self.enable_confidence_head:
            # SGLang takes the mere presence of weights for the switch; DeepSpec leaves this key out as well.
            del fields["confidence_head_with_markov"]
        if not self.markov_rank:
            del fields["markov_head_type"]
        return fields | {
            "architectures": [ARCHITECTURES[0]],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention"] * self.num_hidden_layers,
            "attention_dropout": 0.0,
            "use_cache": True,
        }

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], source: str) -> "DraftConfig":
        """Read a `config.json`; `source` names the file in messages.

        Raises:
            ArtifactError: it describes no DSpark draft, or one with parts that we do not run.
        """
        merged = {**raw, **(raw.get("dflash_config") or {}), **(raw.get("dspark_config") or {})}
        merged.update(_rope(merged, source))
        _refuse_foreign_parts(merged, source)
        merged.setdefault("head_dim", merged.get("hidden_size", 0) // max(merged.get("num_attention_heads", 1), 1))
        merged.setdefault("num_key_value_heads", merged.get("num_attention_heads"))
        merged.setdefault("confidence_head_with_markov", bool(merged.get("markov_rank")))
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "config"
            raise ArtifactError(
                f"{source}: {where}: {first['msg']} (found {first['input']!r:.80}). Use a DSpark draft's config.json."
            ) from None


def _rope(raw: Mapping[str, Any], source: str) -> dict[str, float]:
    """Return the rope base from either transformers' old (`rope_theta`) or new (`rope_parameters`) layout."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ArtifactError(f"{source}: draft layers use plain rotary positions (found rope_type {kind!r}). Retrain.")
    theta = parameters.get("rope_theta", raw.get("rope_theta"))
    return {} if theta is None else {"rope_theta": float(theta)}


def _refuse_foreign_parts(raw: Mapping[str, Any], source: str) -> None:
    named = raw.get("architectures") or []
    if not any(name in ARCHITECTURES for name in named):
        raise ArtifactError(
            f"{source}: a draft is one of {', '.join(ARCHITECTURES)} (found {named}). Give the path of a DSpark draft."
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise ArtifactError(f"{source}: draft layers use silu (found {raw['hidden_act']!r}). Retrain.")
    kinds = set(raw.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"} or raw.get("is_causal"):
        raise ArtifactError(f"{source}: draft layers attend to the whole block (found {sorted(kinds)}). Retrain.")
    if not raw.get("sample_from_anchor", True):
        raise ArtifactError(f"{source}: row k must predict offset k+1 (found sample_from_anchor false). Retrain.")
