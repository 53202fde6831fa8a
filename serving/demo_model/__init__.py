"""Builds the demo MoE from SmolLM2-135M-Instruct at set-up. Knows nothing of SGLang or serving."""
