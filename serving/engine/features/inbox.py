"""The HTTP process's side: collects the chunks of each sequence that was asked for, and drops all others.

A client that went away is no longer expected, so what its request still yields is thrown away here. Knows nothing of
SGLang or HTTP.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq
import zmq.asyncio

from sparktier.configs.errors import ReplicaError
from sparktier.serving.engine.features.rows import Rows, joined, parsed


class _Sequence:
    def __init__(self, length_tokens: int) -> None:
        self._missing = length_tokens
        self._parts: list[Rows] = []
        self._next = 0
        self.whole: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()

    def add(self, rows: Rows) -> None:
        if self.whole.done():
            return
        if rows.start != self._next:
            # A prefix from the cache has no hidden states, and a request that was retracted starts over.
            what = f"position {self._next} must come next (found {rows.start})"
            self.whole.set_exception(ReplicaError(f"features of a sequence: {what}. Ask again."))
            return
        self._parts.append(rows)
        self._next += len(rows.features)
        if self._next >= self._missing:
            self.whole.set_result(joined(self._parts))


class Inbox:
    """Listens on `endpoint` from the first sequence on that is expected."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._expected: dict[str, _Sequence] = {}
        self._receiving: asyncio.Task[None] | None = None

    @contextmanager
    def expecting(self, request_id: str, length_tokens: int) -> Iterator["asyncio.Future[Rows]"]:
        """Give a future that has every position of the sequence once its last chunk has come."""
        if self._receiving is None:
            socket: Any = zmq.asyncio.Context.instance().socket(zmq.PULL)
            socket.set_hwm(0)
            socket.bind(self._endpoint)
            self._receiving = asyncio.get_running_loop().create_task(self._receive(socket))
        sequence = self._expected[request_id] = _Sequence(length_tokens)
        try:
            yield sequence.whole
        finally:
            del self._expected[request_id]

    async def _receive(self, socket: Any) -> None:
        while True:
            request_id, rows = parsed(await socket.recv_multipart())
            if request_id in self._expected:
                self._expected[request_id].add(rows)
