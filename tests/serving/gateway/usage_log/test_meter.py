"""The meter: what the core tells is in the log, what breaks off is settled by the replica, and no disk holds it up."""

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparktier.configs.contracts.ended import EndedPage, EndedRequest
from sparktier.configs.errors import ReplicaUnreachable
from sparktier.serving.clients.replica import ReplicaAnswer
from sparktier.serving.gateway.core.ask import Kind
from sparktier.serving.gateway.core.meter import Ended, Started
from sparktier.serving.gateway.usage_log import meter as module
from sparktier.serving.gateway.usage_log.journal import FILES, Journal
from sparktier.serving.gateway.usage_log.meter import UsageMeter
from sparktier.serving.gateway.usage_log.records import UsageRecord, latest, records_in

EPOCH = 1_000
STARTED = Started("e-1", "their-1", "acme", "gold", Kind.CHAT, 1, 0, "http://replica")
DELIVERED = Ended("e-1", prompt_tokens=None, completion_tokens=5, complete=False)


class Replica:
    """A replica's list of ended requests, as an answer of `/sparktier/ended`."""

    def __init__(self) -> None:
        self.epoch = EPOCH
        self.ended: list[EndedRequest] = []
        self.asked: list[str] = []
        self.gone = False

    async def ask(self, method: str, url: str, *, timeout_s: float, json: object = None) -> ReplicaAnswer:
        self.asked.append(url)
        if self.gone:
            raise ReplicaUnreachable("gone")
        after = int(url.removeprefix("http://replica/sparktier/ended?after="))
        shown = tuple(each for each in self.ended if each.seq > after)[:2]
        last = len(self.ended)
        page = EndedPage(replica_id="replica-0", epoch=self.epoch, kept_from=1, last=last, ended=shown)
        return ReplicaAnswer(200, page.model_dump_json().encode())

    def ends(self, request_id: str, tokens: int) -> None:
        self.ended.append(
            EndedRequest(
                seq=len(self.ended) + 1,
                request_id=request_id,
                prompt_tokens=7,
                completion_tokens=tokens,
                cached_tokens=0,
                finish_reason="abort",
                arrived_at_ms=0,
                ended_at_ms=0,
            )
        )


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.setattr(module, "_TICK_S", 0.005)
    return Replica()


def metered(folder: Path, replica: Any) -> UsageMeter:
    journal = Journal(folder, max_file_bytes=1 << 20)
    return UsageMeter(journal, replicas=lambda: {0: "http://replica"}, client=replica, now_ms=lambda: 60_000)


def held(folder: Path) -> dict[str, UsageRecord]:
    lines = [line for file in sorted(folder.glob(FILES)) for line in file.read_bytes().splitlines()]
    return dict(latest(records_in(lines)))


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not met():
            await asyncio.sleep(0.002)


async def test_a_whole_answer_is_kept_without_asking(tmp_path: Path, replica: Replica) -> None:
    meter = metered(tmp_path, replica)
    await meter.started(STARTED)
    opened = held(tmp_path)["e-1"]
    assert (opened.state, opened.request_id, opened.tenant, opened.tier) == ("open", "their-1", "acme", "gold")
    await meter.ended(Ended("e-1", prompt_tokens=7, completion_tokens=9, complete=True))
    found = held(tmp_path)["e-1"]
    assert (found.state, found.prompt_tokens, found.completion_tokens) == ("complete", 7, 9)
    await meter.settle()
    assert not replica.asked


@pytest.mark.parametrize("complete", [False, True])
async def test_what_breaks_off_or_tells_no_tokens_has_the_engine_s_count(
    tmp_path: Path, replica: Replica, complete: bool
) -> None:
    meter = metered(tmp_path, replica)
    await meter.started(STARTED)
    for request_id in ("other", "e-1", "other"):
        replica.ends(request_id, 9)
    await meter.ended(Ended("e-1", prompt_tokens=None, completion_tokens=None if complete else 5, complete=complete))
    assert held(tmp_path)["e-1"].state == "ended"
    await meter.settle()
    found = held(tmp_path)["e-1"]
    assert (found.state, found.prompt_tokens, found.completion_tokens) == ("complete", 7, 9)


async def test_after_a_crash_of_the_gateway_the_next_one_settles(tmp_path: Path, replica: Replica) -> None:
    crashed = metered(tmp_path, replica)
    await crashed.started(STARTED)
    crashed.close()
    replica.ends("e-1", 9)
    meter = metered(tmp_path, replica)
    running = asyncio.create_task(meter.run())
    await until(lambda: held(tmp_path)["e-1"].is_settled)
    running.cancel()
    found = held(tmp_path)["e-1"]
    assert (found.state, found.prompt_tokens, found.completion_tokens) == ("complete", 7, 9)


async def test_where_the_engine_died_too_what_was_delivered_is_kept_as_incomplete(
    tmp_path: Path, replica: Replica
) -> None:
    meter = metered(tmp_path, replica)
    await meter.started(STARTED)
    await meter.ended(DELIVERED)
    replica.gone = True
    await meter.settle()
    assert held(tmp_path)["e-1"].state == "ended"
    replica.gone, replica.epoch = False, 70_000
    await meter.settle()
    found = held(tmp_path)["e-1"]
    assert (found.state, found.completion_tokens) == ("incomplete", 5)


async def test_a_stop_settles_what_it_has_cut_as_far_as_there_is_time(
    tmp_path: Path, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAST_TICK_S", 0.005)
    meter = metered(tmp_path, replica)
    await meter.finish(limit_s=20)
    assert not replica.asked
    for engine_id in ("e-1", "e-2"):
        await meter.started(dataclasses.replace(STARTED, engine_id=engine_id))
        await meter.ended(dataclasses.replace(DELIVERED, engine_id=engine_id))
    finishing = asyncio.create_task(meter.finish(limit_s=20))
    await until(lambda: len(replica.asked) > 1)
    replica.ends("e-1", 9)
    replica.ends("e-2", 8)
    await finishing
    assert [held(tmp_path)[each].completion_tokens for each in ("e-1", "e-2")] == [9, 8]
    await meter.started(dataclasses.replace(STARTED, engine_id="e-3"))
    await meter.ended(dataclasses.replace(DELIVERED, engine_id="e-3"))
    await asyncio.wait_for(meter.finish(limit_s=0.05), 20)
    assert held(tmp_path)["e-3"].state == "ended"


async def test_a_cancelled_call_counts(tmp_path: Path, replica: Replica) -> None:
    meter = metered(tmp_path, replica)
    for call in (meter.started(STARTED), meter.ended(Ended("e-1", 7, 9, complete=True))):
        task = asyncio.create_task(call)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await until(lambda: held(tmp_path).get("e-1") is not None and held(tmp_path)["e-1"].is_settled)
    meter.close()
    again = Journal(tmp_path, max_file_bytes=1 << 20)
    assert not again.left
    again.close()


async def test_a_disk_that_hangs_holds_no_request_up(
    tmp_path: Path, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.01)
    meter = metered(tmp_path, replica)
    never: list[Any] = []

    def add(record: UsageRecord) -> "asyncio.Future[None]":
        never.append(record)
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(meter._journal, "add", add)
    async with asyncio.timeout(20):
        await meter.started(STARTED)
        await meter.ended(DELIVERED)
    assert [each.state for each in never] == ["open", "ended"]


async def test_a_request_that_moves_is_asked_of_where_it_went(tmp_path: Path, replica: Replica) -> None:
    meter = metered(tmp_path, replica)
    await meter.started(STARTED)
    await meter.started(Started("e-1", "their-1", "acme", "gold", Kind.CHAT, 1, 3, "http://elsewhere"))
    await meter.ended(DELIVERED)
    replica.ends("e-1", 9)
    await meter.settle()
    assert not replica.asked
    assert held(tmp_path)["e-1"].replica == 3
