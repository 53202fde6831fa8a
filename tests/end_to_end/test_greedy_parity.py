"""Sharding experts over ranks changes no token: greedy output of one rank and of two is the model's own, in float32."""

import random
from pathlib import Path

import httpx
import pytest

from support.deployment import MODEL, Deployment
from support.oracles.greedy_distribution import GreedyDistribution, Penalty
from support.tiny_moe import VOCAB_SIZE

pytestmark = pytest.mark.engine
PROMPTS, TOKENS = 20, 64


def prompts() -> list[list[int]]:
    """Prompts of 4 to 64 tokens, none of them special."""
    rng = random.Random(20)
    return [[rng.randrange(5, VOCAB_SIZE - 16) for _ in range(rng.randint(4, 64))] for _ in range(PROMPTS)]


def greedy(deployment: Deployment) -> list[list[int]]:
    body = {"model": MODEL, "prompt": prompts(), "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    answer = httpx.post(f"{deployment.url}/v1/completions", json=body | {"ignore_eos": True}, timeout=300.0)
    assert answer.status_code == 200, answer.text
    return [choice["token_ids"] for choice in answer.json()["choices"]]


def assert_the_model_s_own(found: list[list[int]], model: Path) -> None:
    """Each token is the likeliest in one process that holds every expert, in float64."""
    assert {len(tokens) for tokens in found} == {TOKENS}
    whole = GreedyDistribution(model)
    wrong = [whole.wrong(prompt, tokens, Penalty()) for prompt, tokens in zip(prompts(), found, strict=True)]
    assert not any(wrong), f"positions by prompt: {wrong}"


def test_two_ranks_give_the_tokens_of_one(sharded: Deployment, tiny: Path) -> None:
    assert_the_model_s_own(greedy(sharded), tiny)


def test_one_rank_gives_the_tokens_of_the_model(pair: Deployment, predictable: Path) -> None:
    assert_the_model_s_own(greedy(pair), predictable)
