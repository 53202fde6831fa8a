"""The thin HTTP front: bounds and checks a request, sends it to a serving replica, and streams the answer back.

SGLang's OpenAI server does the rest, as it is. Knows nothing of how replicas are started or restarted. Only the routes
listed here reach a replica: its admin endpoints are out of clients' reach.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sparktier.configs.settings import ServerSettings
from sparktier.serving import openai_errors as errors
from sparktier.serving.event_relay import LATE, LOST, EventRelay, answer_unless_gone
from sparktier.serving.replica_table import Replica, ReplicaTable, State
from sparktier.serving.request_rules import refusal

_RETRY_AFTER_S = 5


def front(table: ReplicaTable, server: ServerSettings, client: httpx.AsyncClient) -> Starlette:
    """Return the application; `client` carries requests to replicas, its timeouts are not used."""
    proxy = _Proxy(table, server, client)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", proxy.generate, methods=["POST"]),
            Route("/v1/completions", proxy.generate, methods=["POST"]),
            Route("/v1/models", proxy.models, methods=["GET"]),
            Route("/healthz", _healthz, methods=["GET"]),
            Route("/readyz", proxy.readyz, methods=["GET"]),
        ],
        exception_handlers={404: _not_found, 405: _wrong_method},
    )


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _not_found(request: Request, error: Exception) -> Response:
    return errors.answer(404, f"No such path: {request.url.path}", kind=errors.INVALID, code="not_found")


async def _wrong_method(request: Request, error: Exception) -> Response:
    message = f"{request.method} is not allowed on {request.url.path}"
    return errors.answer(405, message, kind=errors.INVALID, code="method_not_allowed")


class _Proxy:
    def __init__(self, table: ReplicaTable, server: ServerSettings, client: httpx.AsyncClient) -> None:
        self._table = table
        self._server = server
        self._client = client
        self._in_flight = 0

    async def readyz(self, request: Request) -> Response:
        states = {state.value: self._table.count(state) for state in State}
        return JSONResponse({"replicas": states}, status_code=200 if self._table.pick() else 503)

    async def models(self, request: Request) -> Response:
        replica = self._table.pick()
        if replica is None:
            return _no_replica()
        try:
            answer = await self._client.get(f"{replica.url}/v1/models", timeout=self._server.request_timeout_s)
        except httpx.HTTPError:
            return errors.answer(502, LOST, kind=errors.SERVER, code="replica_lost")
        return JSONResponse(answer.json(), status_code=answer.status_code)

    async def generate(self, request: Request) -> Response:
        if self._in_flight >= self._server.max_concurrent_requests:
            message = f"The server answers {self._server.max_concurrent_requests} requests at once. Try again later."
            return errors.answer(
                429, message, kind=errors.OVERLOADED, code="too_many_requests", retry_after_s=_RETRY_AFTER_S
            )
        body = await self._read(request)
        if isinstance(body, Response):
            return body
        replica = self._table.pick()
        if replica is None:
            return _no_replica()
        self._in_flight += 1
        replica.in_flight += 1

        def done() -> None:
            self._in_flight -= 1
            replica.in_flight -= 1

        return await self._forward(request, body, replica, done)

    async def _read(self, request: Request) -> dict[str, Any] | Response:
        """Return the JSON object that was sent, or the refusal of it."""
        limit = self._server.max_body_bytes
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    message = f"A request body may have {limit} bytes at most. Send a shorter prompt."
                    return errors.answer(413, message, kind=errors.INVALID, code="body_too_large")
                chunks.append(chunk)
        except ClientDisconnect:
            return Response(status_code=499)
        problem, body = _parse(request.headers.get("content-type", ""), b"".join(chunks))
        if problem is None:
            problem = refusal(request.url.path, body)
        return body if problem is None else errors.answer(400, problem, kind=errors.INVALID)

    async def _forward(
        self, request: Request, body: dict[str, Any], replica: Replica, done: Callable[[], None]
    ) -> Response:
        """Send `body` on and return the answer; `done` is called once, when nothing of it is left to send."""
        deadline = asyncio.get_running_loop().time() + self._server.request_timeout_s
        outgoing = self._client.build_request("POST", replica.url + request.url.path, json=body, timeout=None)
        try:
            async with asyncio.timeout_at(deadline):
                upstream = await answer_unless_gone(request.receive, self._client.send(outgoing, stream=True))
                if upstream is None:
                    done()
                    return Response(status_code=499)
                if upstream.headers.get("content-type", "").startswith("text/event-stream"):
                    return EventRelay(upstream, deadline=deadline, done=done)
                content = await upstream.aread()
        except TimeoutError:
            done()
            return errors.answer(504, LATE, kind=errors.SERVER, code="timeout")
        except httpx.HTTPError:
            done()
            return errors.answer(502, LOST, kind=errors.SERVER, code="replica_lost")
        except asyncio.CancelledError:
            done()
            raise
        done()
        if upstream.status_code >= 400:
            return errors.from_engine(upstream.status_code, content)
        return Response(content, status_code=upstream.status_code, media_type="application/json")


def _no_replica() -> Response:
    message = "No replica is ready. Try again in a few seconds."
    return errors.answer(503, message, kind=errors.SERVER, code="not_ready", retry_after_s=_RETRY_AFTER_S)


def _parse(content_type: str, raw: bytes) -> tuple[str | None, dict[str, Any]]:
    """Return what is wrong with the body, or None, and the object it holds."""
    if content_type.split(";")[0].strip().lower() != "application/json":
        return f"Content-Type must be application/json (found {content_type or 'none'}).", {}
    try:
        body = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return f"The body must be JSON ({error}).", {}
    if not isinstance(body, dict):
        return f"The body must be a JSON object (found {type(body).__name__}).", {}
    return None, body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
