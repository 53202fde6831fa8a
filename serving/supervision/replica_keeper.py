"""Keeps one replica alive: starts its process, waits until it answers, probes it, and starts it again when it fails.

Tells the replica table what it sees. Ranks are the replica's own affair: one that lost a rank ends, and is a failed
process here.
"""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparktier.configs.errors import ArtifactError, ReplicaError, ReplicaLost, SparktierError
from sparktier.configs.settings.settings import SupervisionSettings
from sparktier.serving.clients.addresses import http_url
from sparktier.serving.clients.rank_facts import RankFacts, read_ranks
from sparktier.serving.clients.replica import OK, AsyncReplicaClient
from sparktier.serving.gateway.routing import Replica, ReplicaTable, State
from sparktier.serving.supervision.backoff import Backoff, Restarts
from sparktier.serving.supervision.failure_reason import reason_in
from sparktier.serving.supervision.processes import held_port, spawn, stop
from sparktier.serving.supervision.run_dir import RunDir, fresh_metrics_env

# Starts that may fail before anything has ever served: then it is the settings, or the machine, and trying on for
# ever would hide that from whoever waits for `ready`.
FIRST_STARTS = 3
EXIT_BAD_INPUT = 2
# A probe is one generated token; several must fail, because a long prefill can make one late.
_FAILED_PROBES = 3
_POLL_S = 0.5
_FAILED_PROCESS_GRACE_S = 2.0
_FIRST_REQUEST_TIMEOUT_S = 60.0
_RANKS_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Surroundings:
    """What a replica's process is started with."""

    settings_file: Path
    run_dir: RunDir
    env: Callable[[], Mapping[str, str]]
    cluster_ready: Callable[[], Awaitable[None]]
    table: ReplicaTable
    say: Callable[[str], None]


@dataclass(frozen=True)
class _Life:
    """How one process of the replica went: why it ended, and for how long it had served."""

    failure: str
    served_s: float
    exit_status: int | None
    told: Sequence[str]
    """The lines of its log that tell most."""


class ReplicaKeeper:
    """Runs `replica` until cancelled."""

    def __init__(
        self, replica: Replica, supervision: SupervisionSettings, around: Surroundings, client: AsyncReplicaClient
    ) -> None:
        self._replica = replica
        self._supervision = supervision
        self._around = around
        self._log = around.run_dir.path / f"replica-{replica.number}.log"
        self._client = client
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._restarts = Restarts(
            Backoff(
                first_s=supervision.restart_backoff_first_s,
                max_s=supervision.restart_backoff_max_s,
                healthy_after_s=supervision.healthy_after_s,
            ),
            random.Random(),
        )

    @property
    def pid(self) -> int | None:
        """Pid of the replica's process while there is one."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Keep the replica serving until cancelled; call `stop` afterwards.

        Raises:
            ArtifactError: the replica's process refuses the settings or the model.
            ReplicaError: every replica fails to start again and again, and none has ever served.
        """
        while True:
            await self._around.cluster_ready()
            life = await self._bounded_life()
            self._give_up_on_a_bad_start(life)
            pause_s = self._restarts.failed(served_s=life.served_s)
            self._say(f"starts again in {pause_s:.1f} s")
            await asyncio.sleep(pause_s)

    async def stop(self, *, grace_s: float) -> None:
        """End the replica's process."""
        if self._process is not None:
            await stop(self._process, grace_s=grace_s)

    def _give_up_on_a_bad_start(self, life: _Life) -> None:
        if self._around.table.ever_served:
            return
        name, told = f"replica {self._replica.number}", "\n".join(life.told)
        if life.exit_status == EXIT_BAD_INPUT:
            raise ArtifactError(f"{name} can't start with these settings: {told}")
        self._replica.failed_starts += 1
        if self._around.table.never_started(FIRST_STARTS):
            raise ReplicaError(f"{name} must start within {FIRST_STARTS} attempts ({life.failure}): {told}")

    async def _bounded_life(self) -> _Life:
        """One life; what goes wrong in it and was not foreseen ends the replica and nothing else."""
        try:
            return await self._one_life()
        except SparktierError:
            raise
        except Exception as error:
            self._replica.state = State.DOWN
            failure = f"{type(error).__name__}: {error}"
            self._say(f"failed: {failure}")
            await self.stop(grace_s=_FAILED_PROCESS_GRACE_S)
            return _Life(failure, served_s=0.0, exit_status=None, told=())

    async def _one_life(self) -> _Life:
        """Start the process and see it through to its end."""
        with held_port() as port:
            process = self._spawned(port)
            failure, served_s = await self._until_ready(process), 0.0
        if failure is None:
            started = time.monotonic()
            failure = await self._until_failed(process)
            served_s = time.monotonic() - started
        self._replica.state = State.DOWN
        exit_status = process.poll()
        if not await stop(process, grace_s=_FAILED_PROCESS_GRACE_S):
            self._say(f"has a process that was killed and does not end (pid {process.pid})")
        told = await asyncio.to_thread(reason_in, self._log, start=self._log_start)
        self._say("\n    ".join([f"failed: {failure}", *told]))
        return _Life(failure, served_s, exit_status, told)

    def _spawned(self, port: int) -> "subprocess.Popen[bytes]":
        self._replica.url = http_url("127.0.0.1", port)
        self._replica.state = State.STARTING
        if missing := self._around.run_dir.restore():
            self._say(f"finds files of this run removed, and its logs with them: wrote {', '.join(map(str, missing))}")
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        command = [sys.executable, "-m", "sparktier.serving.cli.main", "engine", str(self._around.settings_file)]
        command += ["--replica", str(self._replica.number), "--port", str(port)]
        metrics = fresh_metrics_env(self._around.run_dir.path, self._replica.number)
        self._process = spawn(command, log=self._log, env={**self._around.env(), **metrics})
        return self._process

    async def _until_ready(self, process: "subprocess.Popen[bytes]") -> str | None:
        """Return None once a request has been answered, or why none will be."""
        deadline = time.monotonic() + self._supervision.start_timeout_s
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return f"its process ended with status {process.returncode} while starting"
            if await self._ok("/ready") and await self._answers() and (ranks := await self._ranks()):
                self._present(ranks)
                return None
            await asyncio.sleep(_POLL_S)
        return f"it was not ready within {self._supervision.start_timeout_s:g} s (supervision.start_timeout_s)"

    def _present(self, ranks: list[RankFacts]) -> None:
        first = ranks[0]
        self._replica.limits = first.limits()
        self._replica.state = State.SERVING
        self._say(f"serves on {self._replica.url}")
        for rank in ranks:
            self._around.say(f"    {rank.line()}")

    async def _until_failed(self, process: "subprocess.Popen[bytes]") -> str:
        failed = 0
        next_probe = time.monotonic() + self._supervision.probe_interval_s
        while process.poll() is None:
            await asyncio.sleep(_POLL_S)
            if time.monotonic() >= next_probe:
                failed = 0 if await self._ok("/health") else failed + 1
                next_probe = time.monotonic() + self._supervision.probe_interval_s
            if failed >= _FAILED_PROBES and process.poll() is None:
                return f"{failed} health probes in a row went unanswered"
        return f"its process ended with status {process.returncode}"

    async def _ok(self, path: str) -> bool:
        return await self._asked("GET", path, timeout_s=self._supervision.probe_timeout_s) is not None

    async def _answers(self) -> bool:
        """Whether a real request is answered: readiness is a promise that one would be."""
        body = {"prompt": "Hello", "max_tokens": 2, "temperature": 0}
        answer = await self._asked("POST", "/v1/completions", timeout_s=_FIRST_REQUEST_TIMEOUT_S, json=body)
        return answer is not None

    async def _ranks(self) -> list[RankFacts]:
        """Return what the ranks say, or nothing while they say what can't be read."""
        answer = await self._asked("GET", "/sparktier/ranks", timeout_s=_RANKS_TIMEOUT_S)
        try:
            return [] if answer is None else read_ranks(answer)
        except ValueError:
            return []

    async def _asked(self, method: str, path: str, *, timeout_s: float, **content: Any) -> bytes | None:
        """Return the body of an answer with status 200, None for any other outcome."""
        try:
            answer = await self._client.ask(method, f"{self._replica.url}{path}", timeout_s=timeout_s, **content)
        except ReplicaLost:
            return None
        return answer.content if answer.status == OK else None

    def _say(self, what: str) -> None:
        self._around.say(f"replica {self._replica.number} {what}")
