"""`sparktier up`: one command for a whole deployment on this machine. Starts Ray, the replicas and the front, keeps
them running, and ends every process it started.

Knows nothing of SGLang; replicas are processes behind a port.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
import yaml

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.settings import Settings
from sparktier.serving.demo_model import default_cache_dir
from sparktier.serving.device import resolve_device
from sparktier.serving.front import front
from sparktier.serving.local_ray import LocalRay
from sparktier.serving.model_source import local_model
from sparktier.serving.processes import adopt_orphans, end_descendants, free_port, reap
from sparktier.serving.replica_keeper import ReplicaKeeper, Surroundings
from sparktier.serving.replica_table import Replica, ReplicaTable, State

# What is left of the 15 s that a terminal or a pod waits, after requests in flight had their grace.
_REPLICA_GRACE_S = 2.0
_RAY_GRACE_S = 3.0
_TICK_S = 0.2


def run(settings: Settings) -> int:
    """Serve `settings` until SIGINT or SIGTERM and return the exit status.

    Raises ConfigError when the port is taken, and what building or finding the model raises.
    """
    adopt_orphans()
    _require_port(settings)
    model = local_model(settings, progress=_say)
    resolved = settings.model_copy(
        update={"model": settings.model.model_copy(update={"path": model, "served_name": settings.model.public_name})}
    )
    run_dir = _run_dir()
    _say(f"logs in {run_dir}")
    try:
        asyncio.run(_Deployment(resolved, run_dir).serve())
    finally:
        end_descendants(timeout_s=2.0)
    return 0


class _Deployment:
    def __init__(self, settings: Settings, run_dir: Path) -> None:
        self._settings = settings
        self._run_dir = run_dir
        self._settings_file = run_dir / "settings.yaml"
        self._settings_file.write_text(yaml.safe_dump(settings.model_dump()))
        self._ray = None if settings.ray.address else LocalRay(run_dir / "ray.log", self._logical_gpus())
        self._cluster_up = asyncio.Event()
        self._stopping = asyncio.Event()
        self._table = ReplicaTable(
            tuple(Replica(n, f"http://127.0.0.1:{free_port()}") for n in range(settings.replicas.count))
        )

    async def serve(self) -> None:
        """Run until a signal, then end everything in order: requests, replicas, Ray."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
            keepers = [
                ReplicaKeeper(replica, self._settings.supervision, self._surroundings(replica), client)
                for replica in self._table.replicas
            ]
            server = _Server(
                uvicorn.Config(
                    front(self._table, self._settings.server, client),
                    host=self._settings.server.host,
                    port=self._settings.server.port,
                    log_level="warning",
                    timeout_graceful_shutdown=int(self._settings.server.shutdown_grace_s),
                )
            )
            with _signals(self._stopping):
                tasks = [
                    asyncio.create_task(work) for work in (self._keep_ray(), self._announce(), self._reap(keepers))
                ]
                tasks += [asyncio.create_task(keeper.run()) for keeper in keepers]
                serving = asyncio.create_task(server.serve())
                await self._until_stopped_or_failed([*tasks, serving])
                _say("stopping")
                server.should_exit = True
                await asyncio.wait({serving}, timeout=self._settings.server.shutdown_grace_s + 1.0)
                await _cancel_all(tasks)
                await asyncio.gather(*(keeper.stop(grace_s=_REPLICA_GRACE_S) for keeper in keepers))
                if self._ray:
                    await self._ray.stop(grace_s=_RAY_GRACE_S)
            _raise_failure([*tasks, serving])

    async def _until_stopped_or_failed(self, tasks: "list[asyncio.Task[None]]") -> None:
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()

    async def _keep_ray(self) -> None:
        """Keep the local cluster running; when it fails its replicas fail with it, and wait for the next one."""
        while self._ray is not None:
            await self._ray.start()
            self._cluster_up.set()
            while self._ray.running:
                await asyncio.sleep(_TICK_S)
            self._cluster_up.clear()
            _say("the local Ray cluster ended; starting another")
            await self._ray.stop(grace_s=0.0)
        self._cluster_up.set()
        await self._stopping.wait()

    async def _announce(self) -> None:
        started = time.monotonic()
        while self._table.count(State.SERVING) < len(self._table.replicas):
            await asyncio.sleep(_TICK_S)
        server = self._settings.server
        _say(f"ready http=http://{server.host}:{server.port}")
        _say(f"started in {time.monotonic() - started:.0f} s; Ctrl-C ends it")
        await self._stopping.wait()

    async def _reap(self, keepers: list[ReplicaKeeper]) -> None:
        while True:
            await asyncio.sleep(1.0)
            mine = [keeper.pid for keeper in keepers] + [self._ray.pid if self._ray else None]
            reap(besides=[pid for pid in mine if pid is not None])

    def _surroundings(self, replica: Replica) -> Surroundings:
        return Surroundings(
            settings_file=self._settings_file,
            log=self._run_dir / f"replica-{replica.number}.log",
            env=lambda: {"RAY_ADDRESS": self._ray.address, **self._ray.env} if self._ray else {},
            cluster_ready=self._wait_for_cluster,
            say=_say,
        )

    async def _wait_for_cluster(self) -> None:
        await self._cluster_up.wait()

    def _logical_gpus(self) -> int | None:
        return self._settings.replicas.ranks if resolve_device(self._settings) == "cpu" else None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to us: the front stops first, replicas after it."""
        yield


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    yield
    # Handlers stay: a second Ctrl-C must not cut the ending short and leave processes behind.


async def _cancel_all(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _raise_failure(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error


def _require_port(settings: Settings) -> None:
    host, port = settings.server.host, settings.server.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            rule = f"must be an address this machine can listen on ({error.strerror})"
            cure = "Stop what listens there, or choose another port or host."
            raise ConfigError([Problem("server.port", rule, f"{host}:{port}", cure)]) from error


def _run_dir() -> Path:
    path = default_cache_dir() / "runs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    path.mkdir(parents=True)
    return path


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)  # noqa: T201 - this is the command's output
