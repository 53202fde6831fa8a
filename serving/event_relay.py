"""Passing a replica's answer on while watching whether the client is still there.

Closing the connection to the replica is what aborts the request in its engine. Knows nothing of routes or bodies.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sparktier.serving import openai_errors as errors

LOST = "The replica that served this request was lost before it finished. Send the request again."
LATE = "This request took longer than the server allows (server.request_timeout_s) and was ended."


async def answer_unless_gone(receive: Receive, sending: Awaitable[httpx.Response]) -> httpx.Response | None:
    """Return the replica's answer, or None once the client has hung up; the request to the replica is then cancelled.

    Raises httpx.HTTPError as `sending` does.
    """
    answer = asyncio.ensure_future(sending)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        await _cancel(answer, gone)


class EventRelay(Response):
    """A stream of server-sent events from a replica, ended by an error event if the replica or the time is lost.

    A response class of its own because Starlette leaves closing the source to the garbage collector when a client
    hangs up, and the engine would go on generating until then.
    """

    def __init__(self, upstream: httpx.Response, *, deadline: float, done: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._upstream = upstream
        self._deadline = deadline
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; return when it ended or the client has hung up."""
        relay = asyncio.ensure_future(self._relay(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({relay, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(relay, gone)
            await self._upstream.aclose()
            self._done()

    async def _relay(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        ending = b""
        try:
            async with asyncio.timeout_at(self._deadline):
                async for chunk in self._upstream.aiter_raw():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            ending = errors.event(LATE, code="timeout")
        except httpx.HTTPError:
            ending = errors.event(LOST, code="replica_lost")
        await send({"type": "http.response.body", "body": ending, "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
                await task
