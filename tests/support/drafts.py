"""Tiny drafts and made-up target features for tests of the drafter."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.model.config import DraftConfig, MarkovType
from sparktier.drafter.model.draft_model import DraftModel


def tiny_config(markov: MarkovType | None = "vanilla", **changes: object) -> DraftConfig:
    """Return a two-layer draft of width 32 over 97 tokens; `markov` None is DFlash."""
    fields: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "vocab_size": 97,
        "block_size": 5,
        "num_target_layers": 6,
        "target_layer_ids": (1, 3, 5),
        "mask_token_id": 96,
        "num_anchors": 8,
        "markov_rank": 8 if markov else 0,
        "markov_head_type": markov or "vanilla",
        "enable_confidence_head": markov is not None,
        "confidence_head_with_markov": markov is not None,
    }
    return DraftConfig.model_validate(fields | changes)


def loud_model(config: DraftConfig, seed: int = 0) -> DraftModel:
    """Return a model with large random weights everywhere, so that every part shows in the output."""
    model = DraftModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def random_record(config: DraftConfig, length: int, prompt: int, seed: int) -> FeatureRecord:
    """Return a sequence whose first `prompt` tokens are not the answer; features are noise."""
    generator = torch.Generator().manual_seed(seed)
    return FeatureRecord(
        token_ids=torch.randint(0, config.vocab_size, (length,), generator=generator),
        answer_mask=torch.arange(length) >= prompt,
        features=torch.randn(length, config.feature_size, generator=generator),
        last_hidden=torch.randn(length, config.hidden_size, generator=generator),
    )


def speculators_config(config: DraftConfig, **changes: Any) -> dict[str, Any]:
    """Return the config of the same draft as vllm-project/speculators writes it; layers count from the embedding."""
    layer = config.model_dump(include=set(_LAYER_KEYS))
    return {
        "architectures": ["DSparkSpeculator"], "speculators_model_type": "dspark", "sample_from_anchor": True,
        "draft_vocab_size": config.vocab_size, "target_hidden_size": None, "projector_type": "dflash",
        "shift_label": False, "transformer_layer_config": layer | {"model_type": "qwen3"},
        "aux_hidden_state_layer_ids": [layer_id + 1 for layer_id in config.target_layer_ids],
        "speculators_config": {"algorithm": "dspark", "verifier": {"name_or_path": "Qwen/Qwen3-8B"}},
        **config.model_dump(include=set(_HEAD_KEYS)),
    } | changes  # fmt: skip


_LAYER_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "rope_theta", "rms_norm_eps", "max_position_embeddings", "attention_bias",
)  # fmt: skip
_HEAD_KEYS = (
    "block_size", "mask_token_id", "markov_rank", "markov_head_type", "enable_confidence_head",
    "confidence_head_with_markov",
)  # fmt: skip


def write_as_speculators(ours: Path, theirs: Path) -> None:
    """Write the draft in `ours` in that layout, with what it keeps of the target for its losses."""
    theirs.mkdir()
    config = DraftConfig.from_hf(json.loads((ours / "config.json").read_text()), "ours")
    (theirs / "config.json").write_text(json.dumps(speculators_config(config)))
    kept = {"verifier_norm.weight": torch.ones(config.hidden_size), "verifier_lm_head.weight": torch.ones(2, 2)}
    save_file(load_file(ours / "model.safetensors") | kept, theirs / "model.safetensors")
