"""Keeps the local Ray cluster running, if the deployment has one: it may join a cluster instead.

When the cluster ends, its replicas end with it and wait here for the next one.
"""

import asyncio
from collections.abc import Callable, Mapping

from sparktier.configs.errors import ReplicaError
from sparktier.configs.settings.settings import SupervisionSettings
from sparktier.serving.supervision.backoff import Restarts
from sparktier.serving.supervision.local_ray import LocalRay

_TICK_S = 0.2
_GRACE_S = 3.0


class RayKeeper:
    """Runs `local` until cancelled; None means that the cluster is not ours to run."""

    def __init__(self, local: LocalRay | None, supervision: SupervisionSettings, log: Callable[[str], None]) -> None:
        self._local = local
        self._log = log
        self._up = asyncio.Event()
        self._restarts = Restarts(supervision)

    @property
    def env(self) -> Mapping[str, str]:
        """What a process needs in its environment to join."""
        return {} if self._local is None else {"RAY_ADDRESS": self._local.address, **self._local.env}

    @property
    def pid(self) -> int | None:
        """Pid of the head while it is ours."""
        return None if self._local is None else self._local.pid

    async def wait_until_up(self) -> None:
        """Return once processes can join."""
        await self._up.wait()

    async def run(self) -> None:
        """Keep the cluster until cancelled; call `stop` afterwards. Raises ReplicaError when its first start fails."""
        if self._local is None:
            self._up.set()
            await asyncio.Event().wait()
            return
        loop = asyncio.get_running_loop()
        await self._local.start()
        while True:
            started = loop.time()
            self._up.set()
            while self._local.running:
                await asyncio.sleep(_TICK_S)
            self._up.clear()
            await self._restart(self._local, ran_s=loop.time() - started)

    async def stop(self) -> None:
        """End the cluster."""
        if self._local is not None:
            await self._local.stop(grace_s=_GRACE_S)

    async def _restart(self, local: LocalRay, *, ran_s: float) -> None:
        """Return once another head runs; one that fails to start is tried again, because replicas served before."""
        while True:
            pause_s = self._restarts.failed(served_s=ran_s)
            self._log(f"the local Ray cluster ended; another one starts in {pause_s:.1f} s")
            await local.stop(grace_s=0.0)
            await asyncio.sleep(pause_s)
            try:
                await local.start()
            except ReplicaError as error:
                self._log(str(error))
                ran_s = 0.0
            else:
                return
