"""Two replicas: requests go where fewest are, and while one is down or drained the other serves on."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from openai import OpenAI

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.signals import Signals
from sparktier.serving.clients.operator_plan import operator_plan
from support import replica_http
from support.deployment import MODEL, Deployment, wait_until

pytestmark = pytest.mark.engine
STREAMS, TOKENS = 24, 300


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


def drain(pair: Deployment, number: int) -> None:
    """Do as an operator does where no controller runs: send the replica a plan that changes its state alone."""
    url = pair.replica_url(number)
    signals = read_message(Signals, replica_http.get(f"{url}/sparktier/signals", timeout=60.0).content)
    plan = operator_plan(signals, url=url, now_ms=round(time.time() * 1000), state="draining")
    answer = replica_http.post(f"{url}/sparktier/plan", json=plan.model_dump(mode="json"), timeout=60.0)
    assert answer.status_code == 200, answer.text


def streamed(client: OpenAI, place: int) -> tuple[str, str | None]:
    """Return the text of a stream, and why it ended."""
    asked = {"model": MODEL, "prompt": f"{place} ba be", "max_tokens": TOKENS, "temperature": 0}
    text, reason = "", None
    for event in client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}):
        for choice in event.choices:
            text, reason = text + choice.text, choice.finish_reason or reason
    return text, reason


@pytest.mark.prove
def test_a_replica_that_is_drained_and_started_anew_loses_nothing(pair: Deployment) -> None:
    client, ready = pair.client(), pair.output.count("serves on")
    undisturbed = [streamed(client, place) for place in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        first = [pool.submit(streamed, client, place) for place in range(STREAMS // 2)]
        wait_until(lambda: all(map(pair.running_requests, (0, 1))), timeout_s=120, what=lambda: pair.output)
        drain(pair, 0)
        answered = pair.answered_requests(0) + pair.running_requests(0)
        later = [pool.submit(streamed, client, place) for place in range(STREAMS // 2, STREAMS)]
        # It is given all the time that its streams need.
        wait_until(lambda: pair.running_requests(0) == 0, timeout_s=600, what=lambda: pair.output)
        assert pair.answered_requests(0) <= answered
        pair.process("sparktier.serving.cli.main", "engine", "--replica 0").send_signal(signal.SIGTERM)
        found = [each.result() for each in (*first, *later)]
    assert found == undisturbed
    assert {reason for _, reason in found} == {"length"}
    wait_until(lambda: pair.output.count("serves on") == ready + 1, timeout_s=540, what=lambda: pair.output)
    # A new process knows of no plan that drains it.
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda place: streamed(client, place), range(4))) == undisturbed[:4]


def test_while_one_is_down_the_other_serves_on(pair: Deployment) -> None:
    ready = pair.output.count("serves on")
    psutil.Process(pair.ranks(0)[0]["pid"]).kill()
    wait_until(lambda: "replica 0 failed" in pair.output, timeout_s=60, what=lambda: "the failure to be seen")
    assert all(ask(pair.client(), tokens=2) for _ in range(5))
    wait_until(lambda: pair.output.count("serves on") == ready + 1, timeout_s=540, what=lambda: pair.output)
    assert len(pair.ranks(0)) == 1
