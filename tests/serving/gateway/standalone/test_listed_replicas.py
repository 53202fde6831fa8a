"""Replicas that others run: a list says which there are, probes what each does; one that leaves ends what it has."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from sparktier.configs.settings.settings import SupervisionSettings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.clients.replica_list import Listed, write_replicas
from sparktier.serving.gateway.replica_life import State
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.standalone import listed_replicas
from sparktier.serving.gateway.standalone.listed_replicas import ListedReplicas
from support.gateways.rank_report import RANK
from support.gateways.replying_replica import replying


class Engine:
    """Answers probes while it is well."""

    well = True

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not self.well:
            return httpx.Response(503)
        return httpx.Response(200, content=json.dumps([RANK] if request.url.path == "/sparktier/ranks" else {}))


@contextlib.asynccontextmanager
async def followed(file: Path) -> AsyncIterator[ReplicaTable]:
    quick = SupervisionSettings(probe_interval_s=0.02)
    table = ReplicaTable(())
    async with AsyncReplicaClient() as client:
        following = asyncio.create_task(ListedReplicas(file, quick, client, table).run())
        try:
            yield table
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not met():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed_replicas, "_INTERVAL_S", 0.02)


def states(table: ReplicaTable) -> list[str]:
    return [str(replica.state) for replica in table.replicas]


async def test_a_listed_replica_serves_once_it_answers_and_is_down_while_it_does_not(tmp_path: Path) -> None:
    engine, file = Engine(), tmp_path / "replicas.json"
    engine.well = False
    async with replying(engine) as url:
        write_replicas(file, {"a": Listed(url=url)})
        async with followed(file) as table:
            await until(lambda: states(table) == ["starting"])
            engine.well = True
            await until(lambda: states(table) == ["serving"])
            [picked] = table.serving
            assert picked.limits is not None
            assert (picked.url, picked.limits.context_tokens) == (url, 256)
            engine.well = False
            await until(lambda: states(table) == ["starting"])
            assert table.serving == []
            engine.well = True
            await until(lambda: states(table) == ["serving"])


async def test_a_replica_that_leaves_the_list_finishes_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "replicas.json"
    async with replying(Engine()) as one, replying(Engine()) as two:
        write_replicas(file, {"a": Listed(url=one), "b": Listed(url=two)})
        async with followed(file) as table:
            await until(lambda: states(table) == ["serving"] * 2)
            leaving = next(replica for replica in table.replicas if replica.url == one)
            leaving.in_flight += 1
            write_replicas(file, {"a": Listed(url=one, state="draining"), "b": Listed(url=two)})
            await until(lambda: leaving.state is State.DRAINING)
            assert leaving in table.replicas
            assert [replica.url for replica in table.serving] == [two]
            leaving.in_flight -= 1
            await until(lambda: [replica.url for replica in table.replicas] == [two])
            assert leaving.state is State.OFF


async def test_a_new_address_is_another_replica_and_a_broken_list_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "replicas.json"
    async with replying(Engine()) as one, replying(Engine()) as two:
        write_replicas(file, {"a": Listed(url=one)})
        async with followed(file) as table:
            await until(lambda: states(table) == ["serving"])
            file.write_text("{")
            await asyncio.sleep(0.1)
            assert states(table) == ["serving"]
            write_replicas(file, {"a": Listed(url=two)})
            await until(lambda: [(each.url, str(each.state)) for each in table.replicas] == [(two, "serving")])
