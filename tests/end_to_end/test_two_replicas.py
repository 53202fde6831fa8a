"""Two replicas: requests go where fewest are, and while one is down the other serves on."""

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from openai import OpenAI

from support.deployment import MODEL, Deployment, wait_until

pytestmark = pytest.mark.engine


def ask(client: OpenAI, *, tokens: int) -> str:
    answer = client.completions.create(model=MODEL, prompt="ba", max_tokens=tokens, extra_body={"ignore_eos": True})
    return answer.choices[0].text


def test_each_replica_holds_every_expert(pair: Deployment) -> None:
    for number in (0, 1):
        (rank,) = pair.ranks(number)
        assert rank["local_experts"] == [0, 7]
    assert pair.ranks(0)[0]["pid"] != pair.ranks(1)[0]["pid"]


def test_requests_are_spread_evenly(pair: Deployment) -> None:
    # Each of the long answers outlasts the sending of all, so the six are in flight together.
    before = [pair.answered_requests(number) for number in (0, 1)]
    client = pair.client()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(client, tokens=480), range(6)))
    assert all(answers)
    assert [pair.answered_requests(number) - before[number] for number in (0, 1)] == [3, 3]


def test_while_one_is_down_the_other_serves_on(pair: Deployment) -> None:
    ready = pair.output.count("serves on")
    psutil.Process(pair.ranks(0)[0]["pid"]).kill()
    wait_until(lambda: "replica 0 failed" in pair.output, timeout_s=60, what=lambda: "the failure to be seen")
    assert all(ask(pair.client(), tokens=2) for _ in range(5))
    wait_until(lambda: pair.output.count("serves on") == ready + 1, timeout_s=540, what=lambda: pair.output)
    assert len(pair.ranks(0)) == 1
