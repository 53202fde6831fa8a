"""Keeps a deployment's controller alive, and tells it which replicas there are.

The deployment serves without it: replicas go on with their last plan until its time is over.
"""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sparktier.configs.contracts.message import RunState
from sparktier.configs.errors import ArtifactError
from sparktier.configs.settings.settings import Settings
from sparktier.serving.clients.addresses import http_url
from sparktier.serving.clients.replica_list import Listed, write_replicas
from sparktier.serving.gateway.replica_life import State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.supervision.backoff import Restarts
from sparktier.serving.supervision.failure_reason import reason_in
from sparktier.serving.supervision.processes import held_port, spawn, stop

_POLL_S = 0.25
_STATES: Mapping[State, RunState] = {State.SERVING: "serving", State.DRAINING: "draining"}


class ControllerKeeper:
    """Runs the controller of the replicas in `table` until cancelled; files go into `folder`.

    `url` is where its routes are, once one was started.
    """

    def __init__(
        self,
        settings: Settings,
        table: ReplicaTable,
        *,
        folder: Path,
        settings_file: Path,
        env: Mapping[str, str],
        log: Callable[[str], None],
    ) -> None:
        self._settings, self._table, self._env, self._log = settings, table, env, log
        self._settings_file, self._log_file = settings_file, folder / "controller.log"
        self._replicas_file = folder / "replicas.json"
        self._written: dict[str, Listed] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = Restarts(settings.supervision)
        self.url: str | None = None

    @property
    def pid(self) -> int | None:
        """Pid of the controller while there is one."""
        return None if self._process is None else self._process.pid

    def reload(self) -> None:
        """Have the controller take the tiers of its settings file anew; one that starts later does anyway."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)

    async def run(self) -> None:
        """Keep a controller running until cancelled; call `stop` afterwards."""
        while True:
            self._write()
            started = time.monotonic()
            log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
            await self._one_life()
            reasons = await asyncio.to_thread(reason_in, self._log_file, start=log_start)
            pause_s = self._restarts.failed(served_s=time.monotonic() - started)
            self._log("\n    ".join([f"controller ended; it starts again in {pause_s:.1f} s", *reasons]))
            await asyncio.sleep(pause_s)

    async def stop(self, *, grace_s: float) -> None:
        """End the controller."""
        if self._process is not None:
            await stop(self._process, grace_s=grace_s)

    async def _one_life(self) -> None:
        controller = self._settings.controller
        with held_port() as port:
            port = controller.port or port
            command = [sys.executable, "-m", "sparktier.serving.cli.main", "controller", str(self._settings_file)]
            command += ["--replicas", str(self._replicas_file), "--port", str(port)]
            self._process = spawn(command, log_file=self._log_file, env=self._env)
            self.url = http_url(controller.host, port)
            self._log(f"controller on {self.url}")
            while self._process.poll() is None:
                self._write()
                await asyncio.sleep(_POLL_S)

    def _write(self) -> None:
        """Write the list of replicas where it has changed."""
        listed = {f"replica-{replica.number}": _listed(replica) for replica in self._table.replicas}
        if listed == self._written and self._replicas_file.exists():
            return
        try:
            write_replicas(self._replicas_file, listed)
            self._written = listed
        except ArtifactError as error:
            self._log(f"controller is not told of a change: {error}")


def _listed(replica: Replica) -> Listed:
    return Listed(url=replica.url or "http://127.0.0.1:1", state=_STATES.get(replica.state, "off"))
