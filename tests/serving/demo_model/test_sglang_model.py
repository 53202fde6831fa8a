"""The model class that SGLang loads the demo model with."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2MoeConfig

from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.demo_model.dense import DenseConfig
from sparktier.serving.demo_model.recipe import ARCHITECTURE, Recipe
from sparktier.serving.demo_model.upcycle import moe_config
from support.engine_starts import STARTED
from support.sglang_rank import cpu_server_args, rank

MODELS = "sparktier.serving.engine.models"
SMALL = DenseConfig(
    layers=3,
    hidden=48,
    intermediate=64,
    query_heads=6,
    kv_heads=2,
    head_dim=16,
    vocab=128,
    context_tokens=128,
    rope_theta=10000.0,
    norm_eps=1e-5,
)


@pytest.fixture(scope="module")
def server_args() -> Any:
    return cpu_server_args(ensure_demo_model(progress=print))


def small_config() -> Qwen2MoeConfig:
    return Qwen2MoeConfig(**moe_config(SMALL, Recipe(query_heads=12, kv_heads=4)))


def test_the_architecture_of_the_checkpoint_is_found(server_args: Any) -> None:
    from sglang.srt.models.registry import import_model_classes

    assert ARCHITECTURE in import_model_classes(MODELS, strict=True)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_heads_follow_the_configs_head_dim(server_args: Any, ranks: int) -> None:
    from sparktier.serving.engine.models.qwen2_moe import HeadDimAttention

    with rank(server_args, 0, ranks):
        attention = HeadDimAttention(small_config(), 1, None, "self_attn")
    assert (attention.head_dim, attention.num_heads, attention.num_kv_heads) == (16, 12 // ranks, 4 // ranks)
    assert attention.qkv_proj.weight.shape == ((12 + 4 + 4) * 16 // ranks, 48)
    assert attention.o_proj.weight.shape == (48, 12 * 16 // ranks)
    assert (attention.attn.head_dim, attention.rotary_emb.head_size, attention.scaling) == (16, 16, 0.25)


def test_a_draft_can_share_and_capture(server_args: Any) -> None:
    from sparktier.serving.engine.models.qwen2_moe import HeadDimAttention, SparktierQwen2MoeForCausalLM

    with rank(server_args, 0, 1):
        model = SparktierQwen2MoeForCausalLM(small_config())
    assert all(type(layer.self_attn) is HeadDimAttention for layer in model.model.layers)
    assert model.get_input_embeddings() is model.model.embed_tokens
    model.set_dflash_layers_to_capture([0, 1])
    assert model.capture_aux_hidden_states
    # SGLang captures what enters a layer, so "after layer i" is marked on layer i + 1.
    marked = [getattr(layer, "_is_layer_to_capture", False) for layer in model.model.layers]
    assert marked == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_expert_gate_on_a_cpu(server_args: Any, dtype: torch.dtype) -> None:
    from sparktier.serving.engine.models.qwen2_moe import qwen2_moe

    hidden, shared, routed = (torch.randn(5, 48).to(dtype) for _ in range(3))
    gate = torch.randn(48).to(dtype)
    want = routed.double() + torch.sigmoid(hidden.double() @ gate.double())[:, None] * shared.double()
    qwen2_moe.fused_gate_sigmoid_mul_add(hidden, gate, shared, routed)
    torch.testing.assert_close(routed.double(), want, rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.engine
def test_engine_answers_like_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another implementation of model, attention and cache: the first 32 greedy tokens of float32 are the same."""
    import sglang

    checkpoint: Path = ensure_demo_model(progress=print)
    monkeypatch.setenv("SGLANG_EXTERNAL_MODEL_PACKAGE", MODELS)
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    prompts = ["The capital of France is", "def add(a, b):\n", "Once upon a time"]
    STARTED["SGLang"] += 1
    engine = sglang.Engine(
        model_path=str(checkpoint),
        device="cpu",
        dtype="float32",
        context_length=512,
        max_total_tokens=2048,
        max_running_requests=4,
        disable_overlap_schedule=True,
        log_level="error",
    )
    try:
        answers = engine.generate(prompts, {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True})
    finally:
        engine.shutdown()
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "eos_token_id": None}
        want = reference.generate(ids, **options)[0, ids.shape[1] :]
        assert answer["output_ids"] == want.tolist()
