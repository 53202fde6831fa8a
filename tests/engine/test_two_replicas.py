"""Two replicas: requests go where fewest are, and while one is down the other serves on."""

import threading

import psutil
import pytest

from support.deployment import MODEL, Deployment, wait_until

pytestmark = pytest.mark.engine


def ask(deployment: Deployment, *, tokens: int) -> str:
    answer = deployment.client().completions.create(
        model=MODEL, prompt="ba", max_tokens=tokens, extra_body={"ignore_eos": True}
    )
    return answer.choices[0].text


def test_each_replica_holds_every_expert(pair: Deployment) -> None:
    for number in (0, 1):
        (rank,) = pair.ranks(number)
        assert rank["local_experts"] == [0, 7]
    assert pair.ranks(0)[0]["pid"] != pair.ranks(1)[0]["pid"]


def test_requests_are_spread_evenly(pair: Deployment) -> None:
    threads = [threading.Thread(target=ask, args=(pair,), kwargs={"tokens": 400}) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(
        lambda: [pair.running_requests(number) for number in (0, 1)] == [3, 3],
        timeout_s=60,
        what=lambda: f"three requests each, not {[pair.running_requests(number) for number in (0, 1)]}",
    )
    for thread in threads:
        thread.join()


def test_while_one_is_down_the_other_serves_on(pair: Deployment) -> None:
    ready = pair.output.count("serves on")
    psutil.Process(pair.ranks(0)[0]["pid"]).kill()
    wait_until(lambda: "replica 0 failed" in pair.output, timeout_s=60, what=lambda: "the failure to be seen")
    assert all(ask(pair, tokens=2) for _ in range(5))
    wait_until(lambda: pair.output.count("serves on") == ready + 1, timeout_s=540, what=lambda: pair.output)
    assert len(pair.ranks(0)) == 1
