"""A client that hangs up stops its request in the engine, whether it was waiting or streaming."""

import httpx
import pytest
from openai import OpenAI

from support.deployment import MODEL, Deployment, wait_until

pytestmark = pytest.mark.engine
# Eight long answers take far longer than this on any machine that runs these tests.
GONE_WITHIN_S = 10.0
LONG = {"model": MODEL, "prompt": "ba be bi", "max_tokens": 480, "n": 8, "ignore_eos": True, "temperature": 1}


def assert_the_engine_lets_go(deployment: Deployment) -> None:
    wait_until(
        lambda: deployment.running_requests() == 0,
        timeout_s=GONE_WITHIN_S,
        what=lambda: f"an idle engine, which still has {deployment.running_requests()} requests",
    )


def assert_the_engine_is_busy(deployment: Deployment) -> None:
    wait_until(lambda: deployment.running_requests() == 8, timeout_s=60, what=lambda: "eight running requests")


def test_an_aborted_stream(sharded: Deployment) -> None:
    with httpx.stream("POST", f"{sharded.url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        assert_the_engine_is_busy(sharded)
    assert_the_engine_lets_go(sharded)


def test_an_aborted_wait(sharded: Deployment) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{sharded.url}/v1/completions", json=LONG, timeout=httpx.Timeout(60, read=3))
    assert_the_engine_lets_go(sharded)


def test_an_aborted_stream_of_openais_client(sharded: Deployment) -> None:
    client: OpenAI = sharded.client()
    with client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "ba"}],
        max_tokens=480,
        n=8,
        stream=True,
        extra_body={"ignore_eos": True},
    ) as stream:
        next(iter(stream))
        assert_the_engine_is_busy(sharded)
    assert_the_engine_lets_go(sharded)


def test_others_are_answered_afterwards(sharded: Deployment) -> None:
    answer = sharded.client().completions.create(model=MODEL, prompt="ba", max_tokens=4)
    assert answer.choices[0].text
