"""Nothing is left behind: random requests, aborted at random, on rungs switched at random, over two ranks under Ray."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from sparktier.configs.contracts.signals import Signals
from support import replica_http
from support.deployment import Deployment, deployed, wait_until
from support.generation import Switching
from support.oracles.greedy_distribution import GreedyDistribution, Penalty
from support.oracles.oracle_draft import make_oracle_draft
from support.tiny_moe import make_tiny_moe
from support.traffic import random_asks, send_all

pytestmark = [pytest.mark.engine, pytest.mark.prove]
MINUTES = float(os.environ.get("SPARKTIER_SOAK_MINUTES", "30"))
REQUESTS = int(os.environ.get("SPARKTIER_SOAK_REQUESTS", "1000"))
MIB = 1 << 20
PLANS = {"rung": (0, 1, 2, 3), "rows": (0, 3, 20, 60), "tier0_cap": (0, 2, 11)}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_moe(tmp_path_factory.mktemp("soak") / "target", context_gain=0.2)


@pytest.fixture(scope="module")
def replica(target: Path) -> Iterator[Deployment]:
    draft = make_oracle_draft(target.parent / "draft", target, block_tokens=5)
    tree = {"speculation.method": "tree", "speculation.draft_path": draft, "speculation.tree_rows": 12}
    # Little enough room that requests are retracted too.
    with deployed(target, target.parent / "output", **tree, **{"replicas.kv_tokens": 1024}) as deployment:
        yield deployment


def signals(url: str) -> Signals:
    return Signals.model_validate_json(replica_http.get(f"{url}/sparktier/signals", timeout=60.0).content)


def assert_empty(replica: Deployment, ranks: list[psutil.Process]) -> None:
    """No request, no KV slot and no request slot is held, and the ranks are still the same processes.

    A rank of SGLang's that is idle compares its pools with what it should hold, and ends itself when they differ.
    """
    url = replica.replica_url()

    def nothing_held() -> bool:
        # A health probe is a request, too: one look has to fall between two of them.
        flushed = replica_http.post(f"{url}/flush_cache", timeout=60.0).status_code == 200
        loads = replica_http.get(f"{url}/v1/loads", timeout=60.0).json()["loads"]
        return (
            flushed
            and [rank.kv_used_frac for rank in signals(url).ranks] == [0.0]
            and [load["num_used_tokens"] for load in loads] == [0]
        )

    wait_until(nothing_held, timeout_s=60, what=lambda: f"an idle engine that holds nothing: {signals(url).ranks}")
    time.sleep(3.0)
    assert all(process.is_running() for process in ranks)
    assert [process.pid for process in ranks] == [report["pid"] for report in replica.ranks()]


def ranks_of(replica: Deployment) -> list[psutil.Process]:
    return [psutil.Process(report["pid"]) for report in replica.ranks()]


@pytest.mark.timeout(3600)
def test_random_requests_with_aborts_leave_nothing_behind(replica: Deployment, target: Path) -> None:
    url, ranks = replica.replica_url(), ranks_of(replica)
    asks = random_asks(REQUESTS, seed=1)
    with Switching(url, PLANS, seed=2, pause_s=0.2):
        outcome = asyncio.run(send_all(url, asks, at_once=16))
    assert sum(outcome.ends.values()) == REQUESTS
    assert {"abort", "hung up", "length", "stop"} <= set(outcome.ends), outcome.ends
    assert_empty(replica, ranks)
    distribution = GreedyDistribution(target)
    wrong = [prompt for prompt, answer in outcome.greedy if distribution.wrong(prompt, answer, Penalty())]
    assert outcome.greedy
    assert not wrong


@pytest.mark.timeout(MINUTES * 60 + 900)
def test_memory_of_the_ranks_is_flat(replica: Deployment) -> None:
    url, ranks = replica.replica_url(), ranks_of(replica)
    # First lets caches and allocators reach their size.
    asyncio.run(send_all(url, random_asks(100, seed=3), at_once=16, name="warm"))
    samples: list[list[float]] = []
    begun = time.monotonic()
    with Switching(url, PLANS, seed=4, pause_s=0.2):
        while (elapsed := time.monotonic() - begun) < MINUTES * 60:
            asyncio.run(send_all(url, random_asks(40, seed=len(samples)), at_once=16, name=f"flat-{len(samples)}"))
            samples.append([elapsed, *(process.memory_info().rss / MIB for process in ranks)])
    at_s, *resident = np.array(samples).T
    growth = [float(np.polyfit(at_s, mib, 1)[0]) * 3600 for mib in resident]
    print(f"{len(at_s)} samples, RSS {[round(float(mib[-1])) for mib in resident]} MiB, {growth} MiB an hour")  # noqa: T201
    # At some 50 steps a second, 60 MiB an hour is 350 bytes kept of each step: less than any object or tensor.
    assert max(growth) < 60, growth
    assert_empty(replica, ranks)
