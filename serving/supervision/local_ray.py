"""A Ray cluster of this machine alone, for `sparktier up` without `ray.address`: one head process, guarded by a token.

On machines without accelerators its GPUs are logical: a count of the ranks that it may hold. Ray listens on the
machine's own address even when it is told otherwise, so that only the token keeps other processes from joining.
"""

import asyncio
import os
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from sparktier.configs.errors import ReplicaError
from sparktier.serving.clients.addresses import host_port, no_proxy_env
from sparktier.serving.supervision.failure_reason import reason_in
from sparktier.serving.supervision.processes import free_port, spawn, stop

_HOST = "127.0.0.1"
_READY_MARK = b"Ray runtime started."
_OBJECT_STORE_BYTES = 128 << 20  # ranks exchange tensors over gloo or NCCL, never through Ray's store
# Ray runs its workers at nice 15 by default. Ours are the ranks, which every request waits for.
_HEAD_ENV = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
_START_TIMEOUT_S = 60.0
_POLL_S = 0.1


@dataclass
class LocalRay:
    """One head node."""

    log_file: Path
    logical_gpus: int | None
    """GPUs to claim; None lets Ray count the real ones."""
    _process: subprocess.Popen[bytes] | None = None
    _port: int = 0
    _token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)

    @property
    def address(self) -> str:
        """Where to join."""
        return host_port(_HOST, self._port)

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to join: the token that Ray asks for."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}

    @property
    def pid(self) -> int | None:
        """Pid of the head while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the head process is alive."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the head and return once it answers. Raises ReplicaError when it does not."""
        try:
            self._port = free_port(_HOST)
            start = self.log_file.stat().st_size if self.log_file.exists() else 0
            env = {**no_proxy_env(os.environ), **self.env, **_HEAD_ENV}
            self._process = spawn(self._command(), log_file=self.log_file, env=env)
            with self.log_file.open("rb") as log:
                log.seek(start)
                started = await self._has_started(log)
        except OSError as error:
            rule = f"The local Ray cluster must start, and log to {self.log_file}"
            raise ReplicaError(f"{rule} (found {error}). Free space there, or set SPARKTIER_CACHE.") from error
        if not started:
            reasons = "\n".join(await asyncio.to_thread(reason_in, self.log_file, start=start))
            raise ReplicaError(f"The local Ray cluster must start within {_START_TIMEOUT_S:g} s (found: {reasons}).")

    async def _has_started(self, log: IO[bytes]) -> bool:
        """Return whether the head logs its start in time; `log` is read from its current position."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        seen = b""
        while _READY_MARK not in (seen := seen[-len(_READY_MARK) :] + log.read()):
            if not self.running or time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def stop(self, *, grace_s: float) -> None:
        """End the head and every Ray process under it."""
        if self._process is not None:
            await stop(self._process, grace_s=grace_s)

    def _command(self) -> list[str]:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            f"--node-ip-address={_HOST}",
            f"--port={self._port}",
            "--include-dashboard=false",
            "--disable-usage-stats",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--ray-client-server-port={free_port(_HOST)}",  # its fixed default would clash between two clusters
            "--log-color=false",
        ]
        if self.logical_gpus is not None:
            command.append(f"--num-gpus={self.logical_gpus}")
        return command
