"""The upcycled model is the dense one until noise is added; then its routing matters."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen2MoeForCausalLM

from sparktier.serving.demo_model.dense import DenseConfig, DenseModel
from sparktier.serving.demo_model.recipe import Recipe
from sparktier.serving.demo_model.upcycle import upcycle
from support.demo_models import dense_llama, logits, upcycled_moe

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "<|im_start|>user\nWhy is the sky blue? Answer in 3 sentences.<|im_end|>\n<|im_start|>assistant\n",
)
ENGLISH = (Path(__file__).parents[3] / "LICENSE").read_text()[1000:3000]


@pytest.fixture(scope="module")
def tiny_dense(dense: DenseModel) -> DenseModel:
    """Random float64 Llama of 2 layers: rounding hides nothing here."""
    config = DenseConfig(
        layers=2,
        hidden=48,
        intermediate=64,
        query_heads=6,
        kv_heads=2,
        head_dim=16,
        vocab=97,
        context_tokens=128,
        rope_theta=10000.0,
        norm_eps=1e-5,
    )
    generator = torch.Generator().manual_seed(5)
    sizes = {"q": (96, 48), "k": (32, 48), "v": (32, 48), "o": (48, 96)}
    shapes = {f"self_attn.{kind}_proj.weight": size for kind, size in sizes.items()}
    shapes |= {"mlp.gate_proj.weight": (64, 48), "mlp.up_proj.weight": (64, 48), "mlp.down_proj.weight": (48, 64)}
    shapes |= {"input_layernorm.weight": (48,), "post_attention_layernorm.weight": (48,)}
    named = {f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in shapes.items()}
    named |= {"model.embed_tokens.weight": (97, 48), "model.norm.weight": (48,)}
    weights = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3 for name, shape in named.items()
    }
    return DenseModel(config, weights, dense.tokenizer)


@pytest.mark.parametrize(("query_heads", "kv_heads"), [(6, 2), (9, 3), (12, 4)])
def test_split_and_padding_are_exact(tiny_dense: DenseModel, tmp_path: Path, query_heads: int, kv_heads: int) -> None:
    recipe = Recipe(noise_frac=0.0, query_heads=query_heads, kv_heads=kv_heads)
    ids = torch.arange(60).view(2, 30) % 97
    want = logits(dense_llama(tiny_dense), ids)
    assert want.std() > 0.5
    # transformers computes norms and softmax in float32 even here.
    torch.testing.assert_close(logits(upcycled_moe(tiny_dense, recipe, tmp_path), ids), want, rtol=0, atol=2e-6)


def test_dense_model_is_read_right(dense: DenseModel) -> None:
    """Independent of our own names and orders: only a model read right predicts English this well.

    With the rows of q and k left in llama.cpp's order the same text costs 5.4 nats a token; read right, 3.0.
    """
    ids = dense.tokenizer(ENGLISH, return_tensors="pt").input_ids
    scores = logits(dense_llama(dense), ids)[0, :-1]
    assert torch.nn.functional.cross_entropy(scores, ids[0, 1:]) < 3.2


def test_tokenizer_splits_digits_and_keeps_text(dense: DenseModel) -> None:
    assert len(dense.tokenizer("2048").input_ids) == 4
    text = "naïve café\n\tx = 12.5  # 日本\n"
    assert dense.tokenizer.decode(dense.tokenizer(text).input_ids) == text
    assert dense.tokenizer("<|im_start|>user").input_ids[0] == 1


def test_without_noise_logits_equal_the_dense_model(dense: DenseModel, tmp_path: Path) -> None:
    reference, upcycled = dense_llama(dense), upcycled_moe(dense, Recipe(noise_frac=0.0), tmp_path)
    for prompt in PROMPTS:
        ids = dense.tokenizer(prompt, return_tensors="pt").input_ids
        torch.testing.assert_close(logits(upcycled, ids), logits(reference, ids), rtol=0, atol=1e-3)


def _reroute(model: Qwen2MoeForCausalLM) -> None:
    """Send every token to the next expert of the one that its router meant."""
    for layer in model.model.layers:
        layer.mlp.gate.weight.data = layer.mlp.gate.weight.data.roll(1, dims=0)


@pytest.mark.parametrize(("noise_frac", "matters"), [(0.1, True), (0.0, False)])
def test_routing_matters_only_with_noise(
    tiny_dense: DenseModel, tmp_path: Path, noise_frac: float, matters: bool
) -> None:
    model = upcycled_moe(tiny_dense, Recipe(noise_frac=noise_frac, query_heads=6, kv_heads=2), tmp_path)
    ids = torch.arange(40).view(1, 40)
    before = logits(model, ids)
    _reroute(model)
    assert bool((logits(model, ids) - before).abs().max() > 1e-2) is matters


def test_the_demo_recipe_makes_distinct_experts(tiny_dense: DenseModel) -> None:
    weights = upcycle(tiny_dense, Recipe(query_heads=6, kv_heads=2))
    experts = [weights[f"model.layers.0.mlp.experts.{expert}.up_proj.weight"] for expert in range(4)]
    source = tiny_dense.weights["model.layers.0.mlp.up_proj.weight"][32:]
    for index, expert in enumerate(experts):
        assert 0.05 < (expert - source).std() / source.std() < 0.15
        assert all(not torch.equal(expert, other) for other in experts[:index])


def test_same_seed_same_weights(tiny_dense: DenseModel) -> None:
    first, again, other = (upcycle(tiny_dense, Recipe(query_heads=6, kv_heads=2, seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.layers.1.mlp.gate.weight"], other["model.layers.1.mlp.gate.weight"])
