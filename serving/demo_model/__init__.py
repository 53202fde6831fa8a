"""Builds the demo MoE from SmolLM2-135M-Instruct at set-up."""

from sparktier.serving.demo_model.cache import (
    built_demo_model,
    default_cache_dir,
    ensure_demo_model,
    require_buildable,
)

__all__ = ["built_demo_model", "default_cache_dir", "ensure_demo_model", "require_buildable"]
