"""A keeper starts its replica again whatever goes wrong with it, and ends the deployment for declared reasons alone."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sparktier.configs.errors import ArtifactError, ReplicaError
from sparktier.configs.settings.settings import SupervisionSettings
from sparktier.serving.clients.replica import AsyncReplicaClient, ReplicaAnswer
from sparktier.serving.gateway.replica_life import Event, IllegalTransition, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.supervision import processes, replica_keeper
from sparktier.serving.supervision.deployment_dir import new_deployment_dir
from sparktier.serving.supervision.replica_keeper import ReplicaEnvironment, ReplicaKeeper
from support.gateways import rank_report

RANK = rank_report.RANK | {"plugin_active": True}
SLEEPS, ENDS = "import time; time.sleep(600)", "raise RuntimeError('no weights')"
Answer = Callable[[httpx.Request], httpx.Response]


def ranks(content: bytes, status: int = 200) -> Answer:
    """Return an engine that is ready and answers, and says `content` of its ranks."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/sparktier/ranks":
            return httpx.Response(status, content=content)
        return httpx.Response(200, json={})

    return answer


class World:
    """One keeper, its stand-in of an engine, and what it says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.code = SLEEPS
        self.starts = 0
        self.answer = ranks(json.dumps([RANK]).encode())
        self.replica = Replica(0)
        self.table = ReplicaTable((self.replica,))
        self.run = new_deployment_dir(folder / "runs")
        self.settings = self.run.path / "settings.yaml"
        self.settings.write_text("model: {path: demo}")
        self.run.keep(self.settings)
        monkeypatch.setattr(replica_keeper, "spawn", self._spawn)
        monkeypatch.setattr(replica_keeper, "_POLL_S", 0.01)

    def _spawn(self, command: list[str], **where: Any) -> "subprocess.Popen[bytes]":
        self.starts += 1
        return processes.spawn([sys.executable, "-c", self.code], **where)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator["asyncio.Task[None]"]:
        """Run the keeper while the body does."""

        async def ready() -> None:
            """The cluster is up."""

        environment = ReplicaEnvironment(
            settings_file=self.settings,
            deployment_dir=self.run,
            env=dict,
            cluster_ready=ready,
            table=self.table,
            log=self.said.append,
        )
        quick = SupervisionSettings(restart_backoff_first_s=0.01, restart_backoff_max_s=0.02, probe_interval_s=0.02)
        keeper = ReplicaKeeper(self.replica, quick, environment, Answering(self))
        task = asyncio.create_task(keeper.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])
            await keeper.stop(grace_s=0.5)

    async def until(self, met: Callable[[], object]) -> None:
        """Return once `met`."""
        async with asyncio.timeout(60):
            while not met():
                await asyncio.sleep(0.01)


class Answering(AsyncReplicaClient):
    """A client of the engine in a `World`, wherever the keeper has it listen."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def ask(self, method: str, url: str, *, timeout_s: float, json: object = None) -> ReplicaAnswer:
        answer = self._world.answer(httpx.Request(method, url, json=json))
        return ReplicaAnswer(answer.status_code, answer.content)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A keeper in a folder of its own."""
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "odd",
    [
        ranks(b"<html>starting</html>"),
        ranks(b"not yet", status=503),
        ranks(b"[]"),
        ranks(b"{}"),
        ranks(b"\xff\xfe"),
        ranks(b"[" * 100_000),
        ranks(b'[{"rank": 0}]'),
        ranks(json.dumps([RANK | {"context_tokens": 0}]).encode()),
        ranks(json.dumps([RANK, RANK | {"vocab_size": "many"}]).encode()),
        ranks(json.dumps(RANK).encode()),
    ],
    ids=["html", "503", "none", "object", "no text", "deep", "partial", "zero", "text", "no list"],
)
async def test_an_odd_answer_about_ranks_is_not_ready_and_no_more(odd: Answer, world: World) -> None:
    good, asked = world.answer, []

    def counted(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return odd(request)

    world.answer = counted
    async with world.kept() as keeping:
        await world.until(lambda: keeping.done() or asked.count("/sparktier/ranks") >= 2)
        assert not keeping.done()
        assert world.replica.state is State.STARTING
        world.answer = good
        await world.until(lambda: world.replica.state is State.SERVING)
    assert world.starts == 1
    assert "experts 0-7 of 8" in "\n".join(world.said)


async def test_an_unforeseen_error_ends_a_life_of_the_replica_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [OSError(24, "Too many open files"), ValueError("who knows")]
    spawn = replica_keeper.spawn

    def sometimes(*arguments: Any, **where: Any) -> "subprocess.Popen[bytes]":
        if broken:
            raise broken.pop()
        return spawn(*arguments, **where)

    monkeypatch.setattr(replica_keeper, "spawn", sometimes)
    async with world.kept():
        await world.until(lambda: world.replica.state is State.SERVING)
    assert [line for line in world.said if "failed" in line] == [
        "replica 0 failed: ValueError: who knows",
        "replica 0 failed: OSError: [Errno 24] Too many open files",
    ]


async def test_a_deployment_directory_that_was_removed_is_made_again_and_that_is_said(world: World) -> None:
    async with world.kept():
        await world.until(lambda: world.replica.state is State.SERVING)
        shutil.rmtree(world.run.path)
        good, world.answer = world.answer, lambda _: httpx.Response(500)
        await world.until(lambda: world.starts == 2)
        world.answer = good
        await world.until(lambda: world.replica.state is State.SERVING)
    assert world.settings.read_text() == "model: {path: demo}"
    said = "\n".join(world.said)
    assert "can't be read: No such file" in said
    assert f"finds files of this run removed, and its logs with them: wrote {world.settings}" in said


async def test_starts_that_all_fail_end_the_deployment_with_the_reason(world: World) -> None:
    world.code = ENDS
    world.answer = lambda _: httpx.Response(503)
    async with world.kept() as keeping:
        with pytest.raises(ReplicaError, match="RuntimeError: no weights"):
            await asyncio.wait_for(keeping, timeout=60)
    assert world.starts == replica_keeper.FIRST_STARTS


async def test_bad_input_ends_it_at_once(world: World) -> None:
    world.code = "raise SystemExit(2)"
    world.answer = lambda _: httpx.Response(503)
    async with world.kept() as keeping:
        with pytest.raises(ArtifactError):
            await asyncio.wait_for(keeping, timeout=60)
    assert world.starts == 1


async def test_a_replica_that_never_starts_waits_for_one_that_may(world: World) -> None:
    world.code = ENDS
    world.answer = lambda _: httpx.Response(503)
    other = Replica(1)
    world.table = ReplicaTable((world.replica, other))
    async with world.kept() as keeping:
        await world.until(lambda: world.starts > replica_keeper.FIRST_STARTS)
        assert not keeping.done()
        other.failed_starts = replica_keeper.FIRST_STARTS
        with pytest.raises(ReplicaError):
            await asyncio.wait_for(keeping, timeout=60)


async def test_what_the_table_of_a_life_forbids_ends_the_deployment_and_starts_nothing_again(world: World) -> None:
    world.replica.life.happened(Event.START)
    async with world.kept() as keeping:
        with pytest.raises(IllegalTransition, match=r"starting must meet one of .* \(found start\)"):
            await asyncio.wait_for(keeping, timeout=60)
    assert world.starts == 0
