"""One seed offers one load: the same requests at the same times, whatever the answers do."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from sparktier.cluster.traffic.arrivals import Share
from sparktier.cluster.traffic.attainment import Result
from sparktier.cluster.traffic.trace_files import read_trace
from sparktier.serving.bench.serve.asking import Asked
from sparktier.serving.bench.serve.offered import Load, Offered, Texts, at_rate, load_of, shares_of
from sparktier.serving.bench.serve.running import run_load

TEXTS = Texts(["Why is the sky blue?", "Count to ten.", "Tell me a story of a fox."], 4.0, 2048)
SHARES = (Share("acme", 0, 1.0), Share("beta", 1, 2.0))
MOONCAKE = [
    {"timestamp": 0, "input_length": 1400, "output_length": 20, "hash_ids": [0, 1, 2]},
    {"timestamp": 4000, "input_length": 1200, "output_length": 40, "hash_ids": [0, 1, 9]},
    {"timestamp": 8000, "input_length": 9000, "output_length": 4000, "hash_ids": []},
    {"timestamp": 10000, "input_length": 30, "output_length": 5},
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, MOONCAKE)))
    return path


class VirtualClock:
    """A clock whose time passes at once when it is waited for."""

    def __init__(self) -> None:
        self._now_ms = 0.0

    def now_ms(self) -> float:
        """Return the time."""
        return self._now_ms

    async def until(self, at_ms: float) -> None:
        """Return at `at_ms`."""
        await asyncio.sleep(0)
        self._now_ms = max(self._now_ms, at_ms)


def load(seed: int = 7, **options: object) -> Load:
    found = {"rate_s": 4.0, "trace": None, "span_s": 30.0, "tokens": None, "seed": seed} | options
    return load_of(TEXTS, SHARES, **found)  # type: ignore[arg-type]


async def sent(offered: Load, answer_ms: float) -> list[tuple[float, bytes]]:
    """When each request is sent and what it is, where answers take so long."""
    clock, seen = VirtualClock(), []

    async def ask(request: Offered) -> Asked:
        seen.append((clock.now_ms(), json.dumps(request.body("tiny")).encode()))
        await clock.until(clock.now_ms() + answer_ms) if not answer_ms else await asyncio.sleep(0)
        result = Result(request.arrival.at_ms, 1, None, None)
        return Asked(request, result, 0.0, clock.now_ms(), None, None, None)

    await run_load(offered.requests, ask, clock, stopping=asyncio.Event())
    return seen


async def test_two_runs_of_one_seed_send_the_same_requests_at_the_same_times() -> None:
    first, second = await sent(load(), 0.0), await sent(load(), 1e6)
    assert first == second
    assert len(first) > 80
    assert [at_ms for at_ms, _ in first] == [each.arrival.at_ms for each in load().requests]
    assert await sent(load(seed=8), 0.0) != first


async def test_slow_answers_delay_nothing() -> None:
    never, clock, begun = asyncio.Event(), VirtualClock(), []
    requests, stopping = load().requests, asyncio.Event()

    async def ask(request: Offered) -> Asked:
        begun.append(request)
        if len(begun) == len(requests):
            stopping.set()
        await never.wait()
        raise AssertionError("cancelled before")

    assert await run_load(requests, ask, clock, stopping=stopping) == []
    assert len(begun) == len(requests)


async def test_a_stopped_load_keeps_what_is_over() -> None:
    clock, stopping = VirtualClock(), asyncio.Event()
    requests = load().requests
    never = asyncio.Event()

    async def ask(request: Offered) -> Asked:
        if request is requests[10]:
            stopping.set()
        if request in requests[5:]:
            await never.wait()
        return Asked(request, Result(request.arrival.at_ms, 1, None, None), 0.0, 0.0, None, None, None)

    found = await run_load(requests, ask, clock, stopping=stopping)
    assert [each.offered for each in found] == list(requests[:5])


def test_prompts_of_a_rate_are_asked_as_they_are() -> None:
    found = load()
    assert {each.text for each in found.requests} == set(TEXTS.prompts)
    assert {(each.max_tokens, each.to_the_end) for each in found.requests} == {(128, False)}
    assert found.requests[0].arrival.prompt_tokens == round(len(found.requests[0].text) / 4.0)


def test_a_trace_has_its_lengths_and_its_prefixes(trace: Path) -> None:
    found = load(rate_s=None, trace=trace)
    first, second, long, small = found.requests
    assert [each.max_tokens for each in found.requests] == [20, 40, 1024, 5]
    assert all(each.to_the_end for each in found.requests)
    assert len(first.text) == 1400 * 4
    assert first.text[: 1024 * 4] == second.text[: 1024 * 4]
    assert first.text[1024 * 4 : 1100 * 4] != second.text[1024 * 4 : 1100 * 4]
    assert found.clipped == 1
    assert long.arrival.prompt_tokens + long.max_tokens < 2048
    assert small.text.startswith("4. ")


def test_requests_without_known_prefixes_share_none(trace: Path) -> None:
    rows = [row | {"hash_ids": []} for row in MOONCAKE]
    trace.write_text("\n".join(map(json.dumps, rows)))
    heads = [each.text[:3] for each in load(rate_s=None, trace=trace).requests]
    assert len(set(heads)) == len(heads)


@pytest.mark.parametrize("rate_s", [0.1, 0.4, 3.0])
def test_a_trace_is_brought_to_a_rate(trace: Path, rate_s: float) -> None:
    found = at_rate(read_trace(trace), rate_s, span_s=1e9, seed=1)
    assert found.rate_s == pytest.approx(rate_s)
    assert (np.diff(found.at_ms) >= 0).all()


def test_shares_are_of_all_tenants_and_the_named_tiers() -> None:
    tiers = {0: "standard", 5: "gold"}
    assert shares_of(["a"], tiers, {}) == [Share("a", 0, 1.0), Share("a", 5, 1.0)]
    assert shares_of(["a", "b"], tiers, {"gold": 2.0, "standard": 0.0}) == [Share("a", 5, 2.0), Share("b", 5, 2.0)]
