"""Follows the room that each replica tells, so that requests go where there is some."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.room import Room
from sparktier.configs.errors import ContractError, ReplicaLost
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.routing import Replica, ReplicaTable

_ROUTE = "/sparktier/room"
# A replica tells it every second.
_IDLE_S = 5.0
_AGAIN_S = 0.25


class RoomFollowing:
    """Follows the replicas of `table`; `client` shows their admin key. `look` is called with each message.

    A replica of another version, whose messages can't be read or that tells none, has no bounds here: it refuses.
    """

    def __init__(self, table: ReplicaTable, client: AsyncReplicaClient, look: Callable[[], None]) -> None:
        self._table, self._client, self._look = table, client, look
        self._following: dict[tuple[int, str], asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow until cancelled. Raises what following a replica does, an error of the program."""
        try:
            while True:
                self._begin_and_end()
                await asyncio.sleep(_AGAIN_S)
        finally:
            for task in self._following.values():
                task.cancel()

    def _begin_and_end(self) -> None:
        ready = {(each.number, each.url): each for each in self._table.replicas if each.state.has_ready_engine}
        for key in self._following.keys() - ready.keys():
            self._following.pop(key).cancel()
        for key, task in list(self._following.items()):
            if task.done():
                task.result()
                del self._following[key]
        for key, replica in ready.items():
            if key not in self._following:
                self._following[key] = asyncio.create_task(self._follow(replica, replica.url))

    async def _follow(self, replica: Replica, url: str) -> None:
        """Take the messages of one stream, until it breaks off."""
        replica.room.starts_over()
        with contextlib.suppress(ReplicaLost):
            async with contextlib.aclosing(self._client.lines(f"{url}{_ROUTE}", idle_s=_IDLE_S)) as lines:
                async for line in lines:
                    with contextlib.suppress(ContractError):
                        room = read_message(Room, line)
                        replica.room.heard(room.room, room.caps, seq=room.seq, now_s=time.monotonic())
                        self._look()
