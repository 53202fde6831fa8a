"""Keeps one replica alive: starts its process, waits until it answers, probes it, and starts it again when it fails.

Knows nothing of the front; tells the replica table what it sees. Ranks are the replica's own affair: one that lost a
rank ends, and is a failed process here.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from sparktier.configs.settings import SupervisionSettings
from sparktier.serving.processes import spawn, stop
from sparktier.serving.replica_table import Replica, State
from sparktier.serving.restarts import Backoff, Restarts

# A probe is one generated token; several must fail, because a long prefill can make one late.
_FAILED_PROBES = 3
_POLL_S = 0.5
_FAILED_PROCESS_GRACE_S = 2.0
_LOG_TAIL_LINES = 12


@dataclass(frozen=True)
class Surroundings:
    """What a replica's process is started with."""

    settings_file: Path
    log: Path
    env: Callable[[], Mapping[str, str]]
    cluster_ready: Callable[[], Awaitable[None]]
    say: Callable[[str], None]


class ReplicaKeeper:
    """Runs `replica` until cancelled."""

    def __init__(
        self, replica: Replica, supervision: SupervisionSettings, around: Surroundings, client: httpx.AsyncClient
    ) -> None:
        self._replica = replica
        self._supervision = supervision
        self._around = around
        self._client = client
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = Restarts(
            Backoff(
                first_s=supervision.restart_backoff_first_s,
                max_s=supervision.restart_backoff_max_s,
                healthy_after_s=supervision.healthy_after_s,
            )
        )

    @property
    def pid(self) -> int | None:
        """Pid of the replica's process while there is one."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Keep the replica serving; returns only when cancelled. Call `stop` afterwards."""
        while True:
            await self._around.cluster_ready()
            served_s = await self._one_life()
            pause_s = self._restarts.failed(served_s=served_s)
            self._replica.restarts += 1
            self._around.say(f"replica {self._replica.number} starts again in {pause_s:g} s")
            await asyncio.sleep(pause_s)

    async def stop(self, *, grace_s: float) -> None:
        """End the replica's process."""
        if self._process is not None:
            await stop(self._process, grace_s=grace_s)

    async def _one_life(self) -> float:
        """Start the process, see it through to its end, and return for how many seconds it served."""
        self._replica.state = State.STARTING
        port = self._replica.url.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "sparktier.serving.cli", "engine", str(self._around.settings_file)]
        command += ["--replica", str(self._replica.number), "--port", port]
        self._process = process = spawn(command, log=self._around.log, env=self._around.env())
        failure = await self._until_ready(process)
        served_s = 0.0
        if failure is None:
            started = time.monotonic()
            failure = await self._until_failed(process)
            served_s = time.monotonic() - started
        self._replica.state = State.DOWN
        self._replica.ranks = []
        self._around.say(f"replica {self._replica.number} failed: {failure}. Its log, {self._around.log}, ends:")
        for line in self._log_tail():
            self._around.say(f"    {line}")
        await stop(process, grace_s=_FAILED_PROCESS_GRACE_S)
        return served_s

    async def _until_ready(self, process: "subprocess.Popen[bytes]") -> str | None:
        """Return None once a request has been answered, or why none will be."""
        deadline = time.monotonic() + self._supervision.start_timeout_s
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return f"its process ended with status {process.returncode} while starting"
            if await self._ok("/ready") and await self._answers():
                ranks = await self._client.get(f"{self._replica.url}/sparktier/ranks", timeout=10.0)
                self._replica.ranks = ranks.json()
                self._replica.state = State.SERVING
                self._around.say(f"replica {self._replica.number} serves on {self._replica.url}")
                for rank in self._replica.ranks:
                    self._around.say(f"    {describe_rank(rank)}")
                return None
            await asyncio.sleep(_POLL_S)
        return f"it was not ready within {self._supervision.start_timeout_s:g} s (supervision.start_timeout_s)"

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
        try:
            answer = await self._client.get(self._replica.url + path, timeout=self._supervision.probe_timeout_s)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    async def _answers(self) -> bool:
        """Whether a real request is answered: readiness is a promise that one would be."""
        body = {"model": "", "prompt": "Hello", "max_tokens": 2, "temperature": 0}
        try:
            answer = await self._client.post(f"{self._replica.url}/v1/completions", json=body, timeout=60.0)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def _log_tail(self) -> list[str]:
        lines = self._around.log.read_text(errors="replace").splitlines()
        return lines[-_LOG_TAIL_LINES:]


def describe_rank(rank: Mapping[str, object]) -> str:
    """Return one line on what a rank is and holds."""
    held = rank.get("local_experts")
    first, last = held if isinstance(held, list) and held else (0, -1)
    experts = f"experts {first}-{last} of {rank['experts']}" if rank.get("experts") else "no experts"
    return (
        f"rank {rank['rank']}: Ray actor pid {rank['pid']} on {rank['node']}, {experts} in {rank['moe_layers']} "
        f"layers, {rank['threads']} threads, platform {rank['platform']}"
    )
