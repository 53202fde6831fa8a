"""The HTTP process's side: joins the chunks of each expected sequence and drops all others.

The sequence of a client that went away is no longer expected, so its remaining chunks are dropped.
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
from sparktier.serving.engine.features.feature_rows import FeatureRows, joined, parsed

logger = logging.getLogger(__name__)


class _Sequence:
    def __init__(self, length_tokens: int) -> None:
        self._missing = length_tokens
        self._parts: list[FeatureRows] = []
        self._next = 0
        self.whole: asyncio.Future[FeatureRows] = asyncio.get_running_loop().create_future()

    def fail(self, reason: str) -> None:
        """End the wait for the sequence with a ReplicaError."""
        if not self.whole.done():
            self.whole.set_exception(ReplicaError(f"features of a sequence: {reason}. Ask again."))

    def add(self, rows: FeatureRows) -> None:
        if self.whole.done():
            return
        if rows.start != self._next:
            # A cached prefix has no hidden states, and a retracted request starts over.
            self.fail(f"position {self._next} must come next (found {rows.start})")
            return
        self._parts.append(rows)
        self._next += len(rows.features)
        if self._next >= self._missing:
            self.whole.set_result(joined(self._parts))


class Inbox:
    """Receives rows on `endpoint`; it starts to listen when the first sequence is expected."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._expected: dict[str, _Sequence] = {}
        self._receiving: asyncio.Task[None] | None = None
        self.unreadable_messages = 0

    @contextmanager
    def expecting(self, request_id: str, length_tokens: int) -> Iterator["asyncio.Future[FeatureRows]"]:
        """Yield a future of the whole sequence.

        The future gets a ReplicaError when listening ends.

        Raises:
            ReplicaError: the endpoint is in use.
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
            # A broken message must not stop the reading of later ones.
            except Exception as error:
                self.unreadable_messages += 1
                why = f"{type(error).__name__}: {error}"
                logger.warning("features: message %d that can't be read (%s)", self.unreadable_messages, why)

    def _ended(self, socket: Any, receiving: "asyncio.Task[None]") -> None:
        """Fail every expected sequence; the next one opens a new socket."""
        socket.close(0)
        found = "cancelled" if receiving.cancelled() else repr(receiving.exception())
        if not receiving.cancelled():
            logger.error("features: listening for rows ended (%s)", found)
        for sequence in self._expected.values():
            sequence.fail(f"rank 0 must be listened to until its last row (listening ended: {found})")
