"""Keeps one replica alive: starts its process, waits until it answers, probes it, and starts it again when it fails.

It tells the replica's life what happens. A replica that loses a rank ends its own process, so only that is watched.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparktier.configs.errors import EXIT_BAD_INPUT, ArtifactError, ReplicaError
from sparktier.configs.settings.settings import SupervisionSettings
from sparktier.serving.clients.addresses import http_url
from sparktier.serving.clients.rank_facts import RankFacts
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.probes import FAILED_PROBES, Probes
from sparktier.serving.gateway.replica_life import Event, IllegalTransition
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.supervision.backoff import Restarts
from sparktier.serving.supervision.deployment_dir import DeploymentDir, fresh_metrics_env
from sparktier.serving.supervision.failure_reason import reason_in
from sparktier.serving.supervision.processes import held_port, spawn, stop

# Starts of each replica that may fail before any has served. More failures than that are the fault of the settings or
# the machine, and going on would hide it from the user who waits for `ready`.
FIRST_STARTS = 3
_POLL_S = 0.5
_FAILED_PROCESS_GRACE_S = 2.0


@dataclass(frozen=True)
class ReplicaEnvironment:
    """What a keeper starts its replica's process in, and where it reports."""

    settings_file: Path
    deployment_dir: DeploymentDir
    env: Callable[[], Mapping[str, str]]
    cluster_ready: Callable[[], Awaitable[None]]
    table: ReplicaTable
    log: Callable[[str], None]


@dataclass(frozen=True)
class _Life:
    """One process of the replica: why it failed, how long it had served, and how it ended.

    `reasons` are the lines of its log that tell most. `exit_status` is None if it had to be killed, or never started.
    """

    failure: str
    served_s: float
    exit_status: int | None
    reasons: Sequence[str]


class ReplicaKeeper:
    """Runs `replica` until cancelled."""

    def __init__(
        self,
        replica: Replica,
        supervision: SupervisionSettings,
        environment: ReplicaEnvironment,
        client: AsyncReplicaClient,
    ) -> None:
        self._replica = replica
        self._supervision = supervision
        self._environment = environment
        self._log_file = environment.deployment_dir.path / f"replica-{replica.number}.log"
        self._probes = Probes(replica, client, timeout_s=supervision.probe_timeout_s)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._ready_at_s: float | None = None
        self._restarts = Restarts(supervision)

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
            self._replica.life.happened(Event.START)
            await self._environment.cluster_ready()
            life = await self._one_life()
            self._give_up_on_a_bad_start(life)
            pause_s = self._restarts.failed(served_s=life.served_s)
            self._log(f"starts again in {pause_s:.1f} s")
            await asyncio.sleep(pause_s)

    async def stop(self, *, grace_s: float) -> None:
        """End the replica's process."""
        if self._process is not None:
            await stop(self._process, grace_s=grace_s)

    def _give_up_on_a_bad_start(self, life: _Life) -> None:
        table = self._environment.table
        if table.ever_served:
            return
        name, reasons = f"replica {self._replica.number}", "\n".join(life.reasons)
        if life.exit_status == EXIT_BAD_INPUT:
            raise ArtifactError(f"{name} can't start with these settings: {reasons}")
        self._replica.failed_starts += 1
        if table.never_started(FIRST_STARTS):
            raise ReplicaError(f"{name} must start within {FIRST_STARTS} attempts ({life.failure}): {reasons}")

    async def _one_life(self) -> _Life:
        """Start the process and see it through to its end. An error that was not foreseen ends the replica alone."""
        self._process, self._ready_at_s = None, None
        try:
            failure = await self._until_failed()
        except IllegalTransition:
            raise
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        served_s = 0.0 if self._ready_at_s is None else time.monotonic() - self._ready_at_s
        self._replica.life.happened(Event.FAIL)
        exit_status, reasons = await self._end()
        self._log("\n    ".join([f"failed: {failure}", *reasons]))
        return _Life(failure, served_s, exit_status, reasons)

    async def _until_failed(self) -> str:
        """Start a process, and return why it serves no more or never did."""
        with held_port() as port:
            process = self._start(port)
            failure = await self._until_ready(process)
        if failure is not None:
            return failure
        self._replica.life.happened(Event.READY)
        self._ready_at_s = time.monotonic()
        return await self._until_unhealthy(process)

    async def _until_ready(self, process: "subprocess.Popen[bytes]") -> str | None:
        """Return None once a request has been answered, or why none will be."""
        deadline = time.monotonic() + self._supervision.start_timeout_s
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return f"its process ended with status {process.returncode} while starting"
            if ranks := await self._probes.ready():
                self._present(ranks)
                return None
            await asyncio.sleep(_POLL_S)
        return f"it was not ready within {self._supervision.start_timeout_s:g} s (supervision.start_timeout_s)"

    def _start(self, port: int) -> "subprocess.Popen[bytes]":
        """Return a new process of the replica, which serves on `port`."""
        self._replica.url = http_url("127.0.0.1", port)
        deployment_dir = self._environment.deployment_dir
        if missing := deployment_dir.restore():
            self._log(f"finds files of this run removed, and its logs with them: wrote {', '.join(map(str, missing))}")
        self._log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
        command = [sys.executable, "-m", "sparktier.serving.cli.main", "engine", str(self._environment.settings_file)]
        command += ["--replica", str(self._replica.number), "--port", str(port)]
        env = {**self._environment.env(), **fresh_metrics_env(deployment_dir.path, self._replica.number)}
        self._process = spawn(command, log_file=self._log_file, env=env)
        return self._process

    def _present(self, ranks: list[RankFacts]) -> None:
        self._replica.limits = ranks[0].limits()
        self._log(f"serves on {self._replica.url}")
        for rank in ranks:
            self._environment.log(f"    {rank.line()}")

    async def _until_unhealthy(self, process: "subprocess.Popen[bytes]") -> str:
        """Return why `process`, which was ready, serves no more."""
        failed = 0
        next_probe = time.monotonic() + self._supervision.probe_interval_s
        while process.poll() is None:
            await asyncio.sleep(_POLL_S)
            if time.monotonic() >= next_probe:
                failed = 0 if await self._probes.healthy() else failed + 1
                next_probe = time.monotonic() + self._supervision.probe_interval_s
            if failed >= FAILED_PROBES and process.poll() is None:
                return f"{failed} health probes in a row went unanswered"
        return f"its process ended with status {process.returncode}"

    async def _end(self) -> tuple[int | None, Sequence[str]]:
        """End the process, and return its exit status and the lines of its log that tell why it failed."""
        process = self._process
        if process is None:
            return None, ()
        exit_status = process.poll()
        try:
            if not await stop(process, grace_s=_FAILED_PROCESS_GRACE_S):
                self._log(f"has a process that was killed and does not end (pid {process.pid})")
            return exit_status, await asyncio.to_thread(reason_in, self._log_file, start=self._log_start)
        except Exception as error:
            return exit_status, [f"(its process, pid {process.pid}, was not ended: {type(error).__name__}: {error})"]

    def _log(self, what: str) -> None:
        self._environment.log(f"replica {self._replica.number} {what}")
