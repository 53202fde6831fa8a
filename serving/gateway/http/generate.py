"""The HTTP routes that reach a replica, as raw ASGI: reads a request, has the core answer it, and writes the answer.

For each chunk of a stream it writes once. The engine's request ends in the turn of the event loop that learns of a
disconnect.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sparktier.serving.gateway.core import request_ids
from sparktier.serving.gateway.core.admission import RETRY_AFTER_S
from sparktier.serving.gateway.core.answer import Answer
from sparktier.serving.gateway.core.ask import Ask, Kind
from sparktier.serving.gateway.core.events import Message
from sparktier.serving.gateway.core.gateway import LATE, Gateway
from sparktier.serving.gateway.http import openai_errors as errors
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests.body import BodyIntake
from sparktier.serving.gateway.tier_resolution import ASKED_TIER_HEADER, SERVICE_TIER, TIER_HEADER, TPOT_HEADER, TierAsk

STOPPING = "The server stops, and this request was not finished in time. Send it again in a few seconds."
FAILED = "The server failed on this request. Its log says why."
KINDS: Mapping[str, Kind] = {kind.value: kind for kind in Kind}
_HEARTBEAT = b": no token yet\n\n"
_DONE = b"data: [DONE]\n\n"
_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
_JSON = "application/json"
_log = logging.getLogger(__name__)


class Generate:
    """The ASGI application of these routes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        server = gateway.server
        self._timeout_s = server.request_timeout_s
        # Only requests that have arrived in full count as in flight.
        self._intake = BodyIntake(
            max_bytes=server.max_body_bytes, timeout_s=server.body_timeout_s, most=server.max_concurrent_requests
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        written = _Written(send, request_ids.kept_or_new(headers.get(request_ids.HEADER)))
        client = _Client(receive)
        try:
            ask = await self._read(KINDS[scope["path"]], headers, receive, written.request_id)
            async with self._gateway.answering(ask) as answer:
                with client.watched(answer):
                    await _write(ask, answer, written)
        except Refused as error:
            await written.refusal(error)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            if not client.gone:
                # Only uvicorn cancels us, at the end of its grace after a stop signal; the connection is still open.
                stopping = Refused(STOPPING, status=503, code="stopping", retry_after_s=RETRY_AFTER_S)
                await written.refusal(stopping)
        except Exception:
            _log.exception("request %s failed", written.request_id)
            await written.refusal(Refused(FAILED, status=500, code="internal_error"))

    async def _read(self, kind: Kind, headers: Headers, receive: Receive, request_id: str) -> Ask:
        """Return the request once it is there. Raises Refused, or ClientDisconnect."""
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        tenant = await self._gateway.authenticate(headers.get("authorization"))
        self._gateway.require_place()
        try:
            async with asyncio.timeout_at(deadline_s):
                body = await self._intake.object_of(headers, receive)
        except TimeoutError as error:
            raise Refused(LATE, status=504, code="timeout") from error
        tier = TierAsk(
            header=_every(headers, TIER_HEADER),
            service_tier=body.get(SERVICE_TIER),
            tpot_ms=_every(headers, TPOT_HEADER),
        )
        continued = request_ids.traceparent(headers.get("traceparent"))
        return Ask(kind, body, tier, tenant, request_id, deadline_s, continued)


def _every(headers: Headers, name: str) -> str | None:
    """Return a header's value; of one that was sent several times all of them, as HTTP has it."""
    return ", ".join(headers.getlist(name)) if name in headers else None


async def _write(ask: Ask, answer: Answer, written: "_Written") -> None:
    written.tier, written.asked_tier = answer.tier, answer.asked_tier
    if not ask.streams:
        await written.whole(await answer.whole())
        return
    async with aclosing(answer.events()) as events:
        async for messages in events:
            await written.events(messages)
    await written.end(_DONE)


class _Client:
    """The one who asks; `gone` after hanging up."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.gone = False

    @contextlib.contextmanager
    def watched(self, answer: Answer) -> Iterator[None]:
        """Abort `answer` and cancel the body when the client hangs up. Its cancellation ends at the caller's."""
        task = asyncio.current_task()
        assert task is not None
        watching = asyncio.ensure_future(self._hung_up(answer, task))
        try:
            yield
        finally:
            watching.cancel()

    async def _hung_up(self, answer: Answer, task: "asyncio.Task[Any]") -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        answer.abort()
        task.cancel()


class _Written:
    """What has been written of one answer. Headers tell `tier` once it is known, and another `asked_tier`."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.tier: str | None = None
        self.asked_tier: str | None = None
        self._send = send
        self._begun = False

    async def whole(self, message: Message) -> None:
        """Write a whole answer."""
        await self._all(200, to_json(message), {})

    async def events(self, messages: Sequence[Message]) -> None:
        """Write events, or without any a comment that keeps the connection alive."""
        if not self._begun:
            await self._begin(200, _STREAM)
        body = b"".join([b"data: " + to_json(message) + b"\n\n" for message in messages]) or _HEARTBEAT
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes) -> None:
        """Write the end of a stream."""
        if not self._begun:
            await self._begin(200, _STREAM)
        await self._send({"type": "http.response.body", "body": body})

    async def refusal(self, error: Refused) -> None:
        """Write an error: the whole answer, or the last event of a stream."""
        if self._begun:
            await self.end(errors.event(error))
        else:
            await self._all(error.status, to_json(errors.body(error)), errors.headers(error))

    async def _all(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        await self._begin(status, {"Content-Type": _JSON, "Content-Length": str(len(body)), **headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._begun = True
        tiers = {TIER_HEADER: self.tier, ASKED_TIER_HEADER: self.asked_tier}
        named = {**headers, request_ids.HEADER: self.request_id}
        named |= {name: tier for name, tier in tiers.items() if tier is not None}
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
