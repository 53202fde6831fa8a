"""Builds the demo MoE from SmolLM2-135M-Instruct at set-up. Knows nothing of SGLang or serving."""

from sparktier.serving.demo_model.cache import default_cache_dir, ensure_demo_model

__all__ = ["default_cache_dir", "ensure_demo_model"]
