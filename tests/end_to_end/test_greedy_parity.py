"""Sharding experts over ranks changes no token: greedy output of two ranks equals that of one, in float32."""

import random
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from support.deployment import MODEL, Deployment
from support.oracles.greedy import assert_same_greedy
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


def test_two_ranks_give_the_tokens_of_one(
    sharded: Deployment, pair: Deployment, tiny: Path, record_property: Callable[[str, object], None]
) -> None:
    one, two = greedy(pair), greedy(sharded)
    assert {len(tokens) for tokens in one} == {TOKENS}
    ties = assert_same_greedy(one, two, prompts(), tiny)
    record_property("ties", [str(tie) for tie in ties])
    print(f"{PROMPTS} prompts x {TOKENS} tokens: {len(ties)} ties {ties}")  # noqa: T201 - the count is the finding
