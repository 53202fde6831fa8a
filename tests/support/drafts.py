"""Tiny drafts and made-up target features for tests of the drafter."""

import torch

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
