"""Passes a replica's answer on and watches whether the client is still there.

The engine aborts a request when the connection to its replica is closed.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sparktier.configs.errors import ReplicaLost
from sparktier.serving.clients.disconnect import cancel_on_disconnect
from sparktier.serving.clients.replica import OpenAnswer
from sparktier.serving.gateway import openai_errors as errors

LOST = "The replica that served this request was lost before it finished. Send the request again."
LATE = "This request took longer than the server allows (server.request_timeout_s) and was ended."
STOPPING = "The server stops, and this request was not finished in time. Send it again in a few seconds."


async def whole_events(answer: OpenAnswer) -> AsyncGenerator[bytes, None]:
    """Yield the server-sent events of `answer` as they come, one or several whole ones at a time.

    A replica can die in the middle of an event; the half is dropped, so that no later event is glued to it.
    """
    held = b""
    async for chunk in answer.chunks():
        held += chunk
        end = held.rfind(b"\n\n")
        if end >= 0:
            yield held[: end + 2]
            held = held[end + 2 :]


class EventRelay(Response):
    """A stream of server-sent events from a replica, ended by an error event if the replica or the time is lost.

    `first` are events already taken from `events`; the caller closes the answer they come from. `restate` makes of
    whole events what the client gets. A response class of its own because Starlette leaves closing the source to the
    garbage collector when a client hangs up, and the engine would go on generating until then.
    """

    def __init__(
        self,
        first: bytes,
        events: AsyncGenerator[bytes, None],
        *,
        deadline: float,
        restate: Callable[[bytes], bytes],
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._deadline = deadline
        self._restate = restate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; return when it ended or the client has hung up."""
        try:
            await cancel_on_disconnect(receive, self._relay(send))
        except asyncio.CancelledError:
            # Only uvicorn cancels us, at the end of its grace after a stop signal; the connection is still open.
            await send({"type": "http.response.body", "body": errors.event(STOPPING, code="stopping")})

    async def _relay(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        ending = b""
        try:
            async with asyncio.timeout_at(self._deadline):
                await send({"type": "http.response.body", "body": self._restate(self._first), "more_body": True})
                async for events in self._events:
                    body = self._restate(errors.restated_events(events))
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            ending = errors.event(LATE, code="timeout")
        except ReplicaLost:
            ending = errors.event(LOST, code="replica_lost")
        await send({"type": "http.response.body", "body": ending, "more_body": False})
