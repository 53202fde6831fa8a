"""Follows the replicas of a list that others write and run: which there are, and what each is doing."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from sparktier.configs.errors import ArtifactError
from sparktier.configs.settings.server import SupervisionSettings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.clients.replica_list import Listed, read_replicas
from sparktier.serving.gateway.probes import FAILED_PROBES, Probes
from sparktier.serving.gateway.replica_life import Event, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable

_INTERVAL_S = 0.5
_log = logging.getLogger(__name__)


class ListedReplicas:
    """Keeps `table` what the file at `path` lists. A list that can't be read leaves the one before in force."""

    def __init__(
        self, path: Path, supervision: SupervisionSettings, client: AsyncReplicaClient, table: ReplicaTable
    ) -> None:
        self._path = path
        self._supervision = supervision
        self._client = client
        self._table = table
        self._replicas: dict[str, Replica] = {}
        self._following: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow the list until cancelled. Raises what following a replica does, an error of the program."""
        try:
            while True:
                try:
                    self.use(read_replicas(self._path))
                except ArtifactError as error:
                    _log.warning("%s", error)
                for task in self._following.values():
                    if task.done():
                        task.result()
                await asyncio.sleep(_INTERVAL_S)
        finally:
            for task in self._following.values():
                task.cancel()

    def use(self, listed: Mapping[str, Listed]) -> None:
        """Take `listed` as what there is."""
        wanted = {name: each.url for name, each in listed.items() if each.state == "serving"}
        for name, url in wanted.items():
            replica = self._replicas.get(name)
            if replica is None:
                self._add(name, url)
            elif replica.url != url:
                # Another process under the same name; probes tell when it serves.
                self._leave(name)
        for name in self._replicas.keys() - wanted.keys():
            self._leave(name)
        self._table.replicas = tuple(replica for replica in self._table.replicas if not self._gone(replica))

    def _add(self, name: str, url: str) -> None:
        number = max((replica.number for replica in self._table.replicas), default=-1) + 1
        replica = self._replicas[name] = Replica(number, url)
        self._table.replicas = (*self._table.replicas, replica)
        self._following[name] = asyncio.create_task(self._follow(name, replica))

    def _leave(self, name: str) -> None:
        """Send `name` no more requests; those that it has go on."""
        replica = self._replicas.pop(name)
        self._following.pop(name).cancel()
        if replica.state is not State.OFF:
            replica.life.happened(Event.DRAIN)
        _log.info("replica %s at %s gets no more requests", name, replica.url)

    def _gone(self, replica: Replica) -> bool:
        """Whether `replica` has left the list and finished what it had."""
        if any(replica is each for each in self._replicas.values()) or replica.in_flight:
            return False
        if replica.state is State.DRAINING:
            replica.life.happened(Event.DRAINED)
        return True

    async def _follow(self, name: str, replica: Replica) -> None:
        probes = Probes(replica, self._client, timeout_s=self._supervision.probe_timeout_s)
        while True:
            replica.life.happened(Event.START)
            while not (ranks := await probes.ready()):
                await asyncio.sleep(_INTERVAL_S)
            replica.limits = ranks[0].limits()
            replica.life.happened(Event.READY)
            _log.info("replica %s serves on %s", name, replica.url)
            failed = 0
            while failed < FAILED_PROBES:
                await asyncio.sleep(self._supervision.probe_interval_s)
                failed = 0 if await probes.healthy() else failed + 1
            replica.life.happened(Event.FAIL)
            _log.warning("replica %s at %s: %d health probes in a row went unanswered", name, replica.url, failed)
