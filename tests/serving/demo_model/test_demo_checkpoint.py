"""The checkpoint that `ensure_demo_model` leaves: loads by itself, answers, and costs little quality."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.demo_model.dense import DenseModel
from support.demo_models import dense_llama

TEXT = (Path(__file__).parents[3] / "LICENSE").read_text()[1000:3000]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return ensure_demo_model(progress=print)


def _loss_nats(model: PreTrainedModel, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def test_noise_costs_little_quality(checkpoint: Path, dense: DenseModel) -> None:
    """Random experts of the same size would cost several nats."""
    ids = AutoTokenizer.from_pretrained(checkpoint)(TEXT, return_tensors="pt").input_ids
    demo = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    assert _loss_nats(demo, ids) < _loss_nats(dense_llama(dense), ids) + 0.2


def test_config_carries_what_serving_needs(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = model.config
    assert model.dtype == torch.bfloat16
    assert config.architectures == ["SparktierQwen2MoeForCausalLM"]
    assert (config.num_experts, config.num_experts_per_tok, config.norm_topk_prob) == (4, 2, True)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (12, 4, 64)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()


def test_chat_answer_is_sensible_and_ends(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=60, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
