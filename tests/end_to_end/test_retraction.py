"""Requests that lose their KV cache to others, and start again from their text, say the same as if they had not."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from support import replica_http
from support.deployment import deployed
from support.generation import generate, generate_all, random_prompts, set_plan
from support.oracles.greedy_distribution import GreedyDistribution, Penalty
from support.oracles.oracle_draft import make_oracle_draft
from support.tiny_moe import make_tiny_moe

pytestmark = pytest.mark.engine
# Room for a third of what eight answers need; admitted as if they were short.
CROWDED: dict[str, Any] = {
    "model.context_tokens": 256,
    "replicas.kv_tokens": 384,
    "replicas.sglang_args.schedule_conservativeness": 0.05,
}
CONTEXT_TOKENS = CROWDED["model.context_tokens"]
TOKENS = 96
TRIES = 5


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_moe(tmp_path_factory.mktemp("retraction") / "target", context_gain=0.2)


@pytest.fixture(scope="module")
def crowded(target: Path) -> Iterator[str]:
    """The address of a replica that drafts trees and has little room."""
    draft = make_oracle_draft(target.parent / "draft", target, block_tokens=5)
    single = {"replicas.tensor_parallel": 1, "replicas.expert_parallel": 1}
    tree = {"speculation.method": "tree", "speculation.draft_path": draft, "speculation.tree_rows": 12}
    tree |= {"speculation.prompt_lookup": True}
    with deployed(target, target.parent / "output", **CROWDED, **single, **tree) as deployment:
        yield deployment.replica_url()


@pytest.fixture(scope="module")
def distribution(target: Path) -> GreedyDistribution:
    return GreedyDistribution(target)


def retractions(url: str) -> float:
    """How many times a request lost its KV cache so far."""
    name = "sglang:num_retracted_requests_total{"
    page = replica_http.get(f"{url}/metrics", timeout=60.0).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


@pytest.mark.parametrize(
    "penalty", [Penalty(), Penalty(frequency=1.5), Penalty(presence=2.0), Penalty(repetition=1.5)], ids=str
)
def test_retracted_answers_follow_the_target_s_distribution(
    crowded: str, distribution: GreedyDistribution, penalty: Penalty
) -> None:
    prompts = random_prompts(12, seed=7)
    before = retractions(crowded)
    params = {f"{name}_penalty": strength for name, strength in asdict(penalty).items()}
    for _ in range(TRIES):
        answers = generate_all(crowded, prompts, tokens=TOKENS, at_once=8, **params)
        wrong = {
            number: found
            for number, a in enumerate(answers)
            if (found := distribution.wrong(prompts[number], a.tokens, penalty))
        }
        assert not wrong, f"positions by prompt: {wrong}"
        assert {len(answer.tokens) for answer in answers} == {TOKENS}
        # On a busy machine requests may come too far apart to crowd each other out.
        if retractions(crowded) > before:
            break
    assert retractions(crowded) > before


@pytest.mark.parametrize("rung", [0, 2, 3], ids=["off", "chain", "tree"])
@pytest.mark.parametrize("output", [1, 9])
def test_a_prompt_and_its_output_fill_the_context(
    crowded: str, distribution: GreedyDistribution, rung: int, output: int
) -> None:
    """Drafted rows lie past the context's end then; an engine that has no places for them ends."""
    assert set_plan(crowded, {"sparktier_rung": rung})
    prompt = [number % 200 + 70 for number in range(CONTEXT_TOKENS - output)]
    answer = generate(crowded, prompt, tokens=output)
    assert len(answer.tokens) == output
    assert not distribution.wrong(prompt, answer.tokens, Penalty())


def test_an_answer_without_a_bound_ends_with_the_context(crowded: str) -> None:
    messages = [{"role": "user", "content": "ba " * 200}]
    asked = {"messages": messages, "temperature": 0, "ignore_eos": True}
    answer = replica_http.post(f"{crowded}/v1/chat/completions", json=asked, timeout=120.0).json()
    assert answer["usage"]["total_tokens"] == CONTEXT_TOKENS
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("prompt", "output"), [(CONTEXT_TOKENS, 1), (CONTEXT_TOKENS - 1, 2), (CONTEXT_TOKENS + 9, 8)])
def test_what_does_not_fit_the_context_is_refused(crowded: str, prompt: int, output: int) -> None:
    asked = {"prompt": [7] * prompt, "max_tokens": output}
    answer = replica_http.post(f"{crowded}/v1/completions", json=asked, timeout=60.0)
    assert answer.status_code == 400
    assert "context length" in answer.json()["message"]
