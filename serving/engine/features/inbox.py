"""The HTTP process's side: collects the chunks of each sequence that was asked for, and drops all others.

A client that went away is no longer expected, so what its request still yields is thrown away here.
"""

import asyncio
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq
import zmq.asyncio

from sparktier.configs.errors import ReplicaError
from sparktier.serving.engine.features.rows import Rows, joined, parsed

logger = logging.getLogger(__name__)


class _Sequence:
    def __init__(self, length_tokens: int) -> None:
        self._missing = length_tokens
        self._parts: list[Rows] = []
        self._next = 0
        self.whole: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()

    def fail(self, what: str) -> None:
        """End the wait for the sequence."""
        if not self.whole.done():
            self.whole.set_exception(ReplicaError(f"features of a sequence: {what}. Ask again."))

    def add(self, rows: Rows) -> None:
        if self.whole.done():
            return
        if rows.start != self._next:
            # A prefix from the cache has no hidden states, and a request that was retracted starts over.
            self.fail(f"position {self._next} must come next (found {rows.start})")
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
        self.unreadable_messages = 0

    @contextmanager
    def expecting(self, request_id: str, length_tokens: int) -> Iterator["asyncio.Future[Rows]"]:
        """Give a future that has every position of the sequence once its last chunk has come.

        Raises ReplicaError where the endpoint can't be listened on. The future gets one when listening ends.
        """
        if self._receiving is None or self._receiving.done():
            socket = self._listening()
            self._receiving = asyncio.get_running_loop().create_task(self._receive(socket))
            self._receiving.add_done_callback(functools.partial(self._ended, socket))
        sequence = self._expected[request_id] = _Sequence(length_tokens)
        try:
            yield sequence.whole
        finally:
            del self._expected[request_id]

    def _listening(self) -> Any:
        socket: Any = zmq.asyncio.Context.instance().socket(zmq.PULL)
        socket.set_hwm(0)
        try:
            socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            raise ReplicaError(f"features: {self._endpoint} must be free to listen on ({error}). Ask again.") from None
        return socket

    async def _receive(self, socket: Any) -> None:
        while True:
            message = await socket.recv_multipart()
            try:
                request_id, rows = parsed(message)
                if request_id in self._expected:
                    self._expected[request_id].add(rows)
            # Whatever is wrong with one message must not keep those after it from being read.
            except Exception as error:
                self.unreadable_messages += 1
                why = f"{type(error).__name__}: {error}"
                logger.warning("features: message %d that can't be read (%s)", self.unreadable_messages, why)

    def _ended(self, socket: Any, receiving: "asyncio.Task[None]") -> None:
        """Tell those who wait for rows that none will come; the next sequence listens anew."""
        socket.close(0)
        found = "cancelled" if receiving.cancelled() else repr(receiving.exception())
        if not receiving.cancelled():
            logger.error("features: listening for rows ended (%s)", found)
        for sequence in self._expected.values():
            sequence.fail(f"rank 0 must be listened to until its last row (listening ended: {found})")
