"""The facts of the target that a rank has loaded, from its config and from SGLang."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.configs.model_config import is_deepseek_v4
from sglang.srt.layers.radix_attention import RadixAttention

from sparktier.serving.engine.targets.target_support import TargetFacts, facts_of


def loaded_facts(model_runner: Any) -> TargetFacts:
    """Return the facts of the target in SGLang's `model_runner`: true where the config or SGLang says so."""
    config = model_runner.model_config
    facts = facts_of(config.hf_config.to_dict())
    return replace(
        facts,
        recurrent=facts.recurrent or mambaish_config(config) is not None,
        token_history=facts.token_history or bool(config.use_ngram_embedding or config.use_engram),
        compressed=facts.compressed or is_deepseek_v4(config.hf_config),
        sectioned_positions=facts.sectioned_positions or bool(config.model_is_mrope),
        latent=facts.latent or bool(model_runner.use_mla_backend),
        windowed=facts.windowed or any(0 < window < config.context_len for window in _windows(model_runner.model)),
    )


def _windows(model: Any) -> Iterator[int]:
    for layer in model.modules():
        if isinstance(layer, RadixAttention) and layer.sliding_window_size is not None:
            yield layer.sliding_window_size
