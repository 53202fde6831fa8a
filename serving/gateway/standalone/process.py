"""`sparktier gateway`: the gateway as a process of its own, before replicas that others run."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop

from sparktier.configs.errors import SparktierError
from sparktier.configs.settings.settings import Settings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.clients.replica_keys import Keys, bearer, keys_of
from sparktier.serving.clients.replica_list import read_replicas
from sparktier.serving.gateway import listeners
from sparktier.serving.gateway.access import Access, access_of
from sparktier.serving.gateway.console.guard import Guard
from sparktier.serving.gateway.console.routes import console_routes
from sparktier.serving.gateway.console.sources import Sources
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.http.internal import internal_app
from sparktier.serving.gateway.replica_life import State
from sparktier.serving.gateway.room_following import RoomFollowing
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.standalone.listed_replicas import ListedReplicas
from sparktier.serving.gateway.telemetry.instruments import Instruments, journal_of
from sparktier.serving.gateway.telemetry.logs import logging_to
from sparktier.serving.gateway.tls import replica_tls
from sparktier.serving.gateway.usage_log.journal import Journal

_TICK_S = 0.2


def run(settings: Settings, *, replicas_file: Path, reload: Callable[[], Settings]) -> int:
    """Serve until SIGINT or SIGTERM and return the exit status; SIGHUP takes the tiers that `reload` reads.

    Raises:
        ConfigError: a port is taken, or the keys file is wrong.
        ArtifactError: the list or the replicas' keys can't be read, or the log of use can't be written.
    """
    with logging_to(sys.stderr), listeners.held(settings.server) as sockets:
        read_replicas(replicas_file)
        keys, access, journal = keys_of(os.environ), access_of(settings), journal_of(settings)
        uvloop.run(_serve(settings, replicas_file, reload, keys, access, journal, sockets))
    return 0


async def _serve(
    settings: Settings,
    replicas_file: Path,
    reload: Callable[[], Settings],
    keys: Keys,
    access: Access,
    journal: Journal | None,
    sockets: listeners.Sockets,
) -> None:
    stopping, table = asyncio.Event(), ReplicaTable(())
    _handle_signals(stopping, lambda: _take_tiers(access, reload))
    tls = replica_tls(settings.server, access.failed_reloads)
    requests, admin = AsyncReplicaClient(bearer(keys.requests), tls), AsyncReplicaClient(bearer(keys.admin), tls)
    async with requests as client, admin as admin_client:
        instruments = Instruments(settings, journal, table, admin_client, access.failed_reloads)
        model = settings.model.public_name
        gateway = Gateway(
            table,
            settings.server,
            client,
            model=model,
            access=access,
            meter=instruments.meter,
            observer=instruments.observer,
        )
        sources = Sources(
            table,
            admin_client,
            tiers=lambda: access.tiers.settings,
            controller=lambda: settings.gateway.controller_url,
            requests=instruments.observer.requests,
        )
        console = console_routes(sources, Guard(settings.server.internal_host, keys.admin))
        internal = internal_app(table, client, instruments.metrics, console)
        listed = ListedReplicas(replicas_file, settings.supervision, client, table)
        rooms = RoomFollowing(table, admin_client, gateway.admission.look)
        tasks = [listed.run(), rooms.run(), instruments.run(), _announce(settings, table)]
        tasks += [each.watch() for each in (access.keys, tls) if each is not None]
        running = [asyncio.create_task(task) for task in tasks]
        try:
            await listeners.serve(gateway, internal, sockets, stopping)
            await instruments.finish()
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            await asyncio.to_thread(instruments.close)


def _handle_signals(stopping: asyncio.Event, take_tiers: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, take_tiers)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)


def _take_tiers(access: Access, reload: Callable[[], Settings]) -> None:
    try:
        access.use_tiers(reload())
    except (SparktierError, OSError) as error:
        _say(f"tiers not reloaded: {error}")
    else:
        _say("tiers of the configuration taken anew")


async def _announce(settings: Settings, table: ReplicaTable) -> None:
    while not table.count(State.SERVING):
        await asyncio.sleep(_TICK_S)
    _say(f"ready {listeners.addresses(settings.server)}")
    await asyncio.Event().wait()


def _say(text: str) -> None:
    # Serving goes on when the disk is full or the reader has gone.
    with contextlib.suppress(OSError):
        print(text, flush=True)  # noqa: T201 - this is the command's output
