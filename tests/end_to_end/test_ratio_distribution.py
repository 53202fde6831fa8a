"""Under the ratio rule a real engine's answers follow the target's own distribution; planted wrong rules are caught.

The distribution is known exactly: four kept tokens a step, four steps, every path's probability from a plain forward.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

from support import replica_http
from support.deployment import Deployment, deployed
from support.generation import Answer, Tokens, random_prompts, set_plan
from support.inputs.dead_ends import assert_every_request_ends_alone
from support.oracles.oracle_draft import make_oracle_draft
from support.oracles.planted_rules import LIKELIEST, OTHER_TEMPERATURE, install, planted_keys
from support.tiny_moe import make_tiny_moe

pytestmark = pytest.mark.engine
KEPT, STEPS, ANSWERS, AT_ONCE = 4, 4, 1500, 500
GREEDY_TOKENS = 64
OFF, CHAIN, TREE = 0, 2, 3
Distribution = dict[tuple[int, ...], float]


@dataclass(frozen=True)
class Engine:
    """An engine that draws its drafts, and the exact distribution of its answers to one prompt."""

    url: str
    prompt: Tokens
    distribution: Distribution
    deployment: Deployment


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("ratio")
    model = make_tiny_moe(folder / "target", context_gain=0.2)
    draft = make_oracle_draft(folder / "draft", model, gains=(6.0, 4.5))
    drawn = {"method": "tree", "draft_path": draft, "accept_rule": "ratio", "tree_rows": 12}
    settings = {f"speculation.{key}": value for key, value in drawn.items()}
    single = {"replicas.tensor_parallel": 1, "replicas.expert_parallel": 1, "replicas.max_running_requests": 64}
    [prompt] = random_prompts(1, seed=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(install(folder / "planted")))
        with deployed(model, folder / "log", **single, **settings) as deployment:
            yield Engine(deployment.replica_url(), prompt, exact_distribution(model, prompt), deployment)


def exact_distribution(model_path: Path, prompt: Tokens) -> Distribution:
    """Probability of each answer of STEPS tokens, by one forward per prefix."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    distribution: Distribution = {(): 1.0}
    for _ in range(STEPS):
        longer: Distribution = {}
        for path, chance in distribution.items():
            with torch.no_grad():
                logits = model(torch.tensor([prompt + list(path)])).logits[0, -1]
            kept = logits.double().softmax(-1).topk(KEPT)
            shares = kept.values / kept.values.sum()
            for token, share in zip(kept.indices.tolist(), shares.tolist(), strict=True):
                longer[(*path, token)] = chance * share
        distribution = longer
    return distribution


def sampled(engine: Engine, *, rung: int, planted: int = 0) -> Counter[tuple[int, ...]]:
    """Count the answers to the prompt under ANSWERS different seeds."""
    assert set_plan(engine.url, {"sparktier_rung": rung, **planted_keys(planted)})
    counts: Counter[tuple[int, ...]] = Counter()
    for first in range(0, ANSWERS, AT_ONCE):
        seeds = range(first, first + AT_ONCE)
        common = {"max_new_tokens": STEPS, "temperature": 1.0, "top_k": KEPT, "ignore_eos": True}
        body = {
            "input_ids": [engine.prompt] * len(seeds),
            "sampling_params": [{**common, "sampling_seed": seed} for seed in seeds],
        }
        answers = replica_http.post(f"{engine.url}/generate", json=body, timeout=600.0)
        assert answers.status_code == 200, answers.text
        counts.update(tuple(answer["output_ids"]) for answer in answers.json())
    return counts


def greedy(engine: Engine, prompts: Sequence[Tokens], *, rung: int, seed: int, sampled_beside: bool) -> list[Answer]:
    """Return greedy answers to the prompts, alone or in one batch with as many sampled ones."""
    assert set_plan(engine.url, {"sparktier_rung": rung})
    common = {"max_new_tokens": GREEDY_TOKENS, "ignore_eos": True}
    temperatures = [0.0] * len(prompts) + [1.0] * len(prompts) * sampled_beside
    body = {
        "input_ids": [*prompts, *prompts][: len(temperatures)],
        "sampling_params": [
            {**common, "temperature": temperature, "sampling_seed": seed + index}
            for index, temperature in enumerate(temperatures)
        ],
    }
    answers = replica_http.post(f"{engine.url}/generate", json=body, timeout=600.0)
    assert answers.status_code == 200, answers.text
    return [Answer(answer["output_ids"], answer["meta_info"]) for answer in answers.json()[: len(prompts)]]


def steps(answers: Sequence[Answer]) -> list[int]:
    return [answer.meta["spec_verify_ct"] for answer in answers]


def p_value(counts: Counter[tuple[int, ...]], distribution: Distribution) -> float:
    """Chi-square of the counts against the distribution, rare answers together; 0 for an answer it doesn't have."""
    if set(counts) - set(distribution):
        return 0.0
    total = sum(counts.values())
    common = [path for path, chance in distribution.items() if chance * total >= 5]
    seen, expected = [counts[path] for path in common], [distribution[path] * total for path in common]
    rest = total - sum(seen), total - sum(expected)
    if rest[1] > 1e-9 * total:
        seen, expected = [*seen, rest[0]], [*expected, rest[1]]
    return float(chisquare(seen, expected).pvalue)


@pytest.mark.parametrize("rung", [TREE, CHAIN])
def test_answers_follow_the_target_s_distribution(engine: Engine, rung: int) -> None:
    assert p_value(sampled(engine, rung=rung), engine.distribution) > 1e-3


@pytest.mark.parametrize(("rung", "planted"), [(TREE, LIKELIEST), (CHAIN, LIKELIEST), (CHAIN, OTHER_TEMPERATURE)])
def test_a_wrong_rule_is_caught(engine: Engine, rung: int, planted: int) -> None:
    assert p_value(sampled(engine, rung=rung, planted=planted), engine.distribution) < 1e-6


@pytest.mark.parametrize("rung", [TREE, CHAIN])
def test_greedy_answers_are_the_target_s_and_without_sampling_nothing_is_drawn(engine: Engine, rung: int) -> None:
    prompts = random_prompts(16, seed=9)
    plain = greedy(engine, prompts, rung=OFF, seed=0, sampled_beside=False)
    alone = [greedy(engine, prompts, rung=rung, seed=seed, sampled_beside=False) for seed in (0, 100)]
    beside = [greedy(engine, prompts, rung=rung, seed=seed, sampled_beside=True) for seed in (0, 100)]
    for answers in (*alone, *beside):
        assert [answer.tokens for answer in answers] == [answer.tokens for answer in plain]
    # Draws follow the seed, and so does the number of accepted ones.
    assert steps(alone[0]) == steps(alone[1]) != steps(plain)
    assert steps(beside[0]) != steps(beside[1])


@pytest.mark.parametrize("rung", [TREE, CHAIN])
def test_every_request_ends_alone(engine: Engine, rung: int) -> None:
    assert set_plan(engine.url, {"sparktier_rung": rung})
    assert_every_request_ends_alone(engine.deployment)
