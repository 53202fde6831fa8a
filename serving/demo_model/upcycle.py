"""Turns a dense Llama model into a Qwen2-MoE of the same function, then makes its experts differ. Pure tensor maths.

Each layer's neurons are cut in two halves: the first becomes the shared expert, the second is copied to every routed
expert ("sparse upcycling", Komatsuzaki et al. 2023, section 3, with a shared half).
"""

from typing import Any

import torch

from sparktier.serving.demo_model.dense import DenseConfig, DenseModel
from sparktier.serving.demo_model.recipe import Recipe

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
# Router logits then spread by about 1 on text: experts get unequal weights, and near ties between them are rare.
ROUTER_GAIN = 8.0


def upcycle(dense: DenseModel, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Float32 weights under Hugging Face's Qwen2-MoE names, lm_head written out."""
    generator = torch.Generator().manual_seed(recipe.seed)
    weights = {name: dense.weights[name] for name in ("model.embed_tokens.weight", "model.norm.weight")}
    weights["lm_head.weight"] = dense.weights["model.embed_tokens.weight"].clone()
    for layer in range(dense.config.layers):
        prefix = f"model.layers.{layer}."
        parts = {name.removeprefix(prefix): w for name, w in dense.weights.items() if name.startswith(prefix)}
        made = _norms(parts) | _attention(parts, dense.config, recipe) | _moe(parts, recipe, generator)
        weights |= {prefix + name: weight for name, weight in made.items()}
    return weights


def moe_config(dense: DenseConfig, recipe: Recipe) -> dict[str, Any]:
    """The config.json of the upcycled model: model_type qwen2_moe, so transformers loads it too."""
    return {
        "model_type": "qwen2_moe",
        "vocab_size": dense.vocab,
        "hidden_size": dense.hidden,
        "intermediate_size": dense.intermediate,
        "num_hidden_layers": dense.layers,
        "num_attention_heads": recipe.query_heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": dense.head_dim,
        "qkv_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": dense.context_tokens,
        "rope_theta": dense.rope_theta,
        "rms_norm_eps": dense.norm_eps,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": recipe.experts,
        "num_experts_per_tok": recipe.experts_per_token,
        "norm_topk_prob": True,
        "moe_intermediate_size": dense.intermediate // 2,
        "shared_expert_intermediate_size": dense.intermediate // 2,
    }


def _norms(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": parts[f"{name}.weight"] for name in ("input_layernorm", "post_attention_layernorm")}


def _attention(parts: dict[str, torch.Tensor], config: DenseConfig, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Zero heads at the end: exact, because their values are zero and o_proj ignores them.

    Query heads per key-value head must stay the same, or old queries would read other keys.
    """
    assert recipe.query_heads * config.kv_heads == recipe.kv_heads * config.query_heads
    heads = {"q": recipe.query_heads, "k": recipe.kv_heads, "v": recipe.kv_heads}
    padded = {
        f"self_attn.{kind}_proj.weight": _zero_padded(parts[f"self_attn.{kind}_proj.weight"], count * config.head_dim)
        for kind, count in heads.items()
    }
    output = parts["self_attn.o_proj.weight"]
    padded["self_attn.o_proj.weight"] = _zero_padded(output.T, recipe.query_heads * config.head_dim).T.contiguous()
    return padded


def _zero_padded(weight: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([weight, weight.new_zeros(rows - weight.shape[0], weight.shape[1])])


def _moe(parts: dict[str, torch.Tensor], recipe: Recipe, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Shared half + weighted routed halves = the dense feed-forward, when noise_frac is 0.

    The shared expert's gate is sigmoid(0) = 1/2, undone by doubling down_proj; routed weights sum to 1
    (norm_topk_prob).
    """
    gate, up, down = (parts[f"mlp.{name}.weight"] for name in PROJECTIONS)
    half, hidden = gate.shape[0] // 2, gate.shape[1]
    shared = (gate[:half], up[:half], 2 * down[:, :half])
    routed = (gate[half:], up[half:], down[:, half:])
    made = {f"mlp.shared_expert.{name}.weight": w.contiguous() for name, w in zip(PROJECTIONS, shared, strict=True)}
    made["mlp.shared_expert_gate.weight"] = torch.zeros(1, hidden)
    router = torch.randn(recipe.experts, hidden, generator=generator)
    made["mlp.gate.weight"] = router * (ROUTER_GAIN / hidden**0.5)
    for expert in range(recipe.experts):
        for name, weight in zip(PROJECTIONS, routed, strict=True):
            noise = torch.randn(weight.shape, generator=generator) * (recipe.noise_frac * weight.std())
            made[f"mlp.experts.{expert}.{name}.weight"] = weight + noise
    return made
