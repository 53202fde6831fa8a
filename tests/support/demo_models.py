"""The dense and the upcycled demo model as transformers models: the oracle is another implementation than SGLang's."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2MoeForCausalLM

from sparktier.serving.demo_model.dense import DenseModel
from sparktier.serving.demo_model.recipe import Recipe
from sparktier.serving.demo_model.upcycle import moe_config, upcycle


def dense_llama(dense: DenseModel) -> LlamaForCausalLM:
    """`dense` in the dtype of its weights, on transformers' Llama."""
    config = dense.config
    dtype = dense.weights["model.norm.weight"].dtype
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.query_heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context_tokens,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=True,
        )
    ).to(dtype)
    missing, unexpected = model.load_state_dict(dense.weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return model.eval()


def upcycled_moe(dense: DenseModel, recipe: Recipe, directory: Path) -> Qwen2MoeForCausalLM:
    """`dense` upcycled by `recipe`, through a checkpoint in `directory`: transformers joins the experts on loading.

    Eager experts, because the grouped product has no float64.
    """
    dtype = dense.weights["model.norm.weight"].dtype
    directory.mkdir(parents=True, exist_ok=True)
    save_file(upcycle(dense, recipe), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(moe_config(dense.config, recipe)))
    return Qwen2MoeForCausalLM.from_pretrained(directory, dtype=dtype, experts_implementation="eager").eval()


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, vocab]."""
    return model(ids).logits
