"""`sparktier up`: one command for a whole deployment on this machine. Starts Ray, the replicas and the front, keeps
them running, and ends every process it started.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import uvloop
import yaml
from starlette.routing import BaseRoute

from sparktier.configs.settings.settings import Settings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.clients.replica_keys import KEYS_FILE_ENV, bearer, new_keys_file, read_keys, write_private
from sparktier.serving.deployment.planner import planner_options, require_possible_promises
from sparktier.serving.deployment.resolved import Resolved, resolve
from sparktier.serving.gateway import listeners
from sparktier.serving.gateway.access import Access, access_of
from sparktier.serving.gateway.console.guard import Guard
from sparktier.serving.gateway.console.routes import console_routes
from sparktier.serving.gateway.console.sources import Sources
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.http.internal import internal_app
from sparktier.serving.gateway.replica_life import State
from sparktier.serving.gateway.room_following import RoomFollowing
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.gateway.telemetry.instruments import Instruments, journal_of
from sparktier.serving.gateway.telemetry.logs import logging_to
from sparktier.serving.gateway.usage_log.journal import Journal
from sparktier.serving.supervision.controller_keeper import ControllerKeeper
from sparktier.serving.supervision.deployment_dir import DeploymentDir, new_deployment_dir, runs_folder
from sparktier.serving.supervision.local_ray import LocalRay
from sparktier.serving.supervision.processes import adopt_orphans, end_descendants, reap
from sparktier.serving.supervision.ray_keeper import RayKeeper
from sparktier.serving.supervision.replica_keeper import ReplicaEnvironment, ReplicaKeeper
from sparktier.serving.supervision.tier_plans import TierPlans

# A terminal or a pod waits 15 s. That covers the longest grace for requests, then this one; the rest is killed.
_PROCESS_GRACE_S = 2.0
_KILL_TIMEOUT_S = 2.0
_TICK_S = 0.2
_REAP_INTERVAL_S = 1.0


def run(settings: Settings, *, reload: Callable[[], Settings]) -> int:
    """Serve `settings` until SIGINT or SIGTERM and return the exit status; SIGHUP takes the tiers that `reload` reads.

    Raises ConfigError when the settings can't run on this machine's device, the port is taken or the keys file is
    wrong, ReplicaError when no replica starts, ArtifactError when logs can't be written or the weights can't be found
    or built.
    """
    adopt_orphans()
    with logging_to(sys.stderr), listeners.held(settings.server) as sockets:
        access = access_of(settings)
        journal = journal_of(settings)
        runs = runs_folder()
        resolved = resolve(settings, progress=_log)
        # A table of another deployment is refused here, before anything has started.
        planner_options(resolved)
        try:
            deployment = _Deployment(resolved, new_deployment_dir(runs), access, journal, reload)
            uvloop.run(deployment.serve(sockets))
        finally:
            end_descendants(timeout_s=_KILL_TIMEOUT_S)
    return 0


class _Deployment:
    def __init__(
        self,
        resolved: Resolved,
        deployment_dir: DeploymentDir,
        access: Access,
        journal: Journal | None,
        reload: Callable[[], Settings],
    ) -> None:
        self._access, self._journal = access, journal
        self._settings = settings = resolved.settings
        self._resolved, self._reload = resolved, reload
        self._deployment_dir = deployment_dir
        self._settings_file = deployment_dir.path / "settings.yaml"
        self._keys_file = new_keys_file(deployment_dir.path)
        self._save(settings)
        deployment_dir.keep(self._keys_file)
        local = None if settings.ray.address else LocalRay(deployment_dir.path / "ray.log", _logical_gpus(resolved))
        self._ray = RayKeeper(local, settings.supervision, _log)
        self._table = ReplicaTable(tuple(Replica(number) for number in range(settings.replicas.count)))
        self._controller = self._controller_keeper() if settings.controller.enabled else None

    async def serve(self, sockets: listeners.Sockets) -> None:
        """Run until a signal or a failure that no restart mends, then end everything."""
        stopping = asyncio.Event()
        keys = read_keys(self._keys_file)
        requests, admin = AsyncReplicaClient(bearer(keys.requests)), AsyncReplicaClient(bearer(keys.admin))
        async with requests as client, admin as admin_client:
            tiers = self._tiers(admin_client)
            keepers = [self._keeper(replica, client) for replica in self._table.replicas]
            failed = self._access.failed_reloads
            instruments = Instruments(self._settings, self._journal, self._table, admin_client, failed)
            gateway = self._gateway(client, instruments)
            console = self._console(admin_client, instruments, admin_key=keys.admin)
            internal = internal_app(self._table, client, instruments.metrics, console)
            _handle_signals(stopping, tiers)
            _log(f"logs in {self._deployment_dir.path}")
            _log(f"keys of the replicas' own ports in {self._keys_file}")
            closing = asyncio.Event()
            serving = asyncio.create_task(listeners.serve(gateway, internal, sockets, closing))
            tasks = [asyncio.create_task(self._ray.run()), asyncio.create_task(self._announce())]
            tasks += [asyncio.create_task(tiers.run()), asyncio.create_task(instruments.run())]
            rooms = RoomFollowing(self._table, admin_client, gateway.admission.look)
            tasks.append(asyncio.create_task(rooms.run()))
            tasks += [asyncio.create_task(keeper.run()) for keeper in keepers]
            if self._controller is not None:
                tasks.append(asyncio.create_task(self._controller.run()))
            if self._access.keys is not None:
                tasks.append(asyncio.create_task(self._access.keys.watch()))
            reaping = asyncio.create_task(self._reap(keepers))
            stop_asked = asyncio.create_task(stopping.wait())
            await asyncio.wait({*tasks, serving, stop_asked}, return_when=asyncio.FIRST_COMPLETED)
            failures = _failures([*tasks, serving])
            _log("stopping")
            closing.set()
            await asyncio.wait([serving])
            await _cancel([*tasks, reaping, stop_asked])
            await instruments.finish()
            ends = [keeper.stop(grace_s=_PROCESS_GRACE_S) for keeper in keepers]
            if self._controller is not None:
                ends.append(self._controller.stop(grace_s=_PROCESS_GRACE_S))
            await asyncio.gather(self._ray.stop(), asyncio.to_thread(instruments.close), *ends)
        if failures:
            raise failures[0]

    async def _announce(self) -> None:
        started = time.monotonic()
        await self._until_serving(1)
        _log(f"ready {listeners.addresses(self._settings.server)}")
        _log(f"started in {time.monotonic() - started:.0f} s; Ctrl-C ends it")
        _log(self._serving())
        if self._table.count(State.SERVING) < len(self._table.replicas):
            await self._until_serving(len(self._table.replicas))
            _log(self._serving())
        await asyncio.Event().wait()

    async def _until_serving(self, replicas: int) -> None:
        while self._table.count(State.SERVING) < replicas:
            await asyncio.sleep(_TICK_S)

    def _serving(self) -> str:
        return f"{self._table.count(State.SERVING)} of {len(self._table.replicas)} replicas serve"

    async def _reap(self, keepers: Sequence[ReplicaKeeper]) -> None:
        while True:
            await asyncio.sleep(_REAP_INTERVAL_S)
            await reap(besides=lambda: self._pids(keepers))

    def _pids(self, keepers: Sequence[ReplicaKeeper]) -> list[int]:
        """Processes whose keepers wait for their exit status."""
        pids = [self._ray.pid, *(keeper.pid for keeper in keepers)]
        pids.append(None if self._controller is None else self._controller.pid)
        return [pid for pid in pids if pid is not None]

    def _gateway(self, client: AsyncReplicaClient, instruments: Instruments) -> Gateway:
        return Gateway(
            self._table,
            self._settings.server,
            client,
            model=self._settings.model.public_name,
            access=self._access,
            meter=instruments.meter,
            observer=instruments.observer,
        )

    def _console(self, client: AsyncReplicaClient, instruments: Instruments, *, admin_key: str) -> Sequence[BaseRoute]:
        keeper = self._controller
        sources = Sources(
            self._table,
            client,
            tiers=lambda: self._access.tiers.settings,
            controller=lambda: None if keeper is None else keeper.url,
            requests=instruments.observer.requests,
        )
        return console_routes(sources, Guard(self._settings.server.internal_host, admin_key))

    def _tiers(self, client: AsyncReplicaClient) -> TierPlans:
        return TierPlans(
            self._settings,
            self._table,
            client,
            load=self._reload,
            use=self._use_tiers,
            save=self._save,
            log=_log,
            tell=None if self._controller is None else self._controller.reload,
        )

    def _controller_keeper(self) -> ControllerKeeper:
        return ControllerKeeper(
            self._settings,
            self._table,
            folder=self._deployment_dir.path,
            settings_file=self._settings_file,
            env={KEYS_FILE_ENV: str(self._keys_file)},
            log=_log,
        )

    def _use_tiers(self, settings: Settings) -> None:
        require_possible_promises(replace(self._resolved, settings=settings))
        self._access.use_tiers(settings)

    def _save(self, settings: Settings) -> None:
        """Write what replicas that start from now on are to read."""
        part = self._settings_file.with_suffix(".part")
        part.unlink(missing_ok=True)
        write_private(part, yaml.safe_dump(replace(self._resolved, settings=settings).as_file()))
        part.replace(self._settings_file)
        self._deployment_dir.keep(self._settings_file)

    def _keeper(self, replica: Replica, client: AsyncReplicaClient) -> ReplicaKeeper:
        environment = ReplicaEnvironment(
            settings_file=self._settings_file,
            deployment_dir=self._deployment_dir,
            env=lambda: {**self._ray.env, KEYS_FILE_ENV: str(self._keys_file)},
            cluster_ready=self._ray.wait_until_up,
            table=self._table,
            log=_log,
        )
        return ReplicaKeeper(replica, self._settings.supervision, environment, client)


def _logical_gpus(resolved: Resolved) -> int | None:
    """Return how many GPUs a local Ray cluster is told of: one a rank where there are none, None to count real ones."""
    return resolved.settings.replicas.ranks if resolved.device == "cpu" else None


def _handle_signals(stopping: asyncio.Event, tiers: TierPlans) -> None:
    """Set `stopping` at every SIGINT and SIGTERM, so that a second one can't cut the ending short; reload at SIGHUP."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, tiers.reload)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)


async def _cancel(tasks: "Sequence[asyncio.Task[object]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _failures(tasks: "Sequence[asyncio.Task[None]]") -> list[BaseException]:
    return [error for task in tasks if task.done() and (error := task.exception())]


def _log(text: str) -> None:
    # Serving goes on when the disk is full or the reader has gone.
    with contextlib.suppress(OSError):
        print(text, file=sys.stdout, flush=True)  # noqa: T201 - this is the command's output
