"""The tiny checkpoint of the tests is fit for them: its text varies and its routing decides."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3MoeForCausalLM

from support.tiny_moe import make_tiny_moe

NEW_TOKENS = 128


def greedy(model: Qwen3MoeForCausalLM, ids: torch.Tensor) -> list[int]:
    answer: list[int] = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids.shape[1] :].tolist()
    return answer


def test_greedy_text_varies_and_never_ends(tmp_path: Path) -> None:
    checkpoint = make_tiny_moe(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), Qwen3MoeForCausalLM.from_pretrained(checkpoint)
    for prompt in ("hello world", "def f(x):\n    return", "1 2 3"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert tokenizer.decode(ids[0]) == prompt
        answer = greedy(model, ids)
        assert len(answer) == NEW_TOKENS
        assert tokenizer.decode(answer).isascii()
        assert len({tuple(answer[start : start + 4]) for start in range(NEW_TOKENS - 3)}) > 0.9 * NEW_TOKENS


def test_one_exchanged_pair_of_experts_changes_the_text(tmp_path: Path) -> None:
    checkpoint = make_tiny_moe(tmp_path)
    model = Qwen3MoeForCausalLM.from_pretrained(checkpoint)
    ids = torch.arange(20, 60)[None]
    before = greedy(model, ids)
    router = model.model.layers[2].mlp.gate.weight
    router.data[[3, 4]] = router.data[[4, 3]]
    assert greedy(model, ids) != before


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    files = [
        make_tiny_moe(tmp_path / name, seed=seed) / "model.safetensors" for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = (file.read_bytes() for file in files)
    assert first == again
    assert first != other
