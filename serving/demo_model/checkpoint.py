"""Writes the demo model as a Hugging Face checkpoint."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import save_file

from sparktier.serving.demo_model.dense import DenseModel, read_gguf
from sparktier.serving.demo_model.recipe import ARCHITECTURE, Recipe
from sparktier.serving.demo_model.upcycle import moe_config, upcycle

# The source's model card samples at 0.2; its top_p is left out: SGLang's sampler would sort the vocabulary every step.
TEMPERATURE = 0.2


def write_checkpoint(
    directory: Path, gguf: Path, recipe: Recipe, progress: Callable[[str], None], dtype: torch.dtype = torch.bfloat16
) -> None:
    """Dequantise, upcycle and write config, weights in `dtype`, tokenizer, generation config and model card."""
    progress("Dequantising SmolLM2-135M-Instruct")
    dense = read_gguf(gguf)
    progress(f"Upcycling it to {recipe.experts} experts, {recipe.experts_per_token} per token")
    weights = {name: weight.to(dtype) for name, weight in upcycle(dense, recipe).items()}
    size_mb = sum(weight.nbytes for weight in weights.values()) / 1e6
    progress(f"Writing {size_mb:.0f} MB to {directory.parent}")
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    dense.tokenizer.save_pretrained(directory)
    card = resources.files("sparktier.serving.demo_model").joinpath("MODEL_CARD.md").read_text()
    (directory / "README.md").write_text(card)
    _write_configs(directory, dense, recipe, dtype)


def _write_configs(directory: Path, dense: DenseModel, recipe: Recipe, dtype: torch.dtype) -> None:
    tokenizer = dense.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    identity = {"architectures": [ARCHITECTURE], "dtype": str(dtype).removeprefix("torch.")}
    config = identity | moe_config(dense.config, recipe) | ids
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    generation = ids | {"do_sample": True, "temperature": TEMPERATURE}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2))
