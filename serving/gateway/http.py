"""The thin HTTP front: bounds and checks a request, sends it to a serving replica, and streams the answer back.

SGLang's OpenAI server, unchanged, does the rest. Only the routes listed here reach a replica: clients can't reach its
admin endpoints.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sparktier.configs.errors import ReplicaLost, ReplicaUnreachable
from sparktier.configs.settings.settings import ServerSettings
from sparktier.serving.clients.disconnect import cancel_on_disconnect
from sparktier.serving.clients.replica import AsyncReplicaClient, OpenAnswer
from sparktier.serving.gateway import openai_errors as errors
from sparktier.serving.gateway import usage
from sparktier.serving.gateway.access import Access, engine_fields
from sparktier.serving.gateway.answer_edits import edited, edited_events, edits_for
from sparktier.serving.gateway.event_relay import LATE, LOST, STOPPING, EventRelay, whole_events
from sparktier.serving.gateway.metrics_page import MetricsPage
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.replica_life import State
from sparktier.serving.gateway.requests.body import BodyIntake
from sparktier.serving.gateway.requests.load import load_of
from sparktier.serving.gateway.requests.rules import PATHS, checked, require_model
from sparktier.serving.gateway.routing import Replica, ReplicaTable, RequestInFlight
from sparktier.serving.gateway.tenants.allowance import Permit
from sparktier.serving.gateway.tier_resolution import SERVICE_TIER, TIER_HEADER, TPOT_HEADER, TierAsk

_RETRY_AFTER_S = 5


def front(
    table: ReplicaTable, server: ServerSettings, client: AsyncReplicaClient, *, model: str, access: Access
) -> Starlette:
    """Return the application; clients that `access` lets in ask for `model`, `client` carries their requests."""
    catalogue = _Catalogue(table, model, access)
    generate = _Generate(table, server, client, model, access)
    page = MetricsPage(table, client)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(await page.text(), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            *(Route(path, generate, methods=["POST"]) for path in PATHS),
            Route("/v1/models", catalogue.all, methods=["GET"]),
            Route("/v1/models/{model:path}", catalogue.one, methods=["GET"]),
            Route("/healthz", _healthz, methods=["GET"]),
            Route("/readyz", catalogue.readyz, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        exception_handlers={Refused: _refused, 404: _not_found, 405: _wrong_method, 500: _failed},
    )


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return errors.refused(error)


async def _not_found(request: Request, error: Exception) -> Response:
    return errors.answer(404, f"No such path: {request.url.path[:200]}", kind=errors.INVALID, code="not_found")


async def _wrong_method(request: Request, error: Exception) -> Response:
    message = f"{request.method} is not allowed on {request.url.path}"
    return errors.answer(405, message, kind=errors.INVALID, code="method_not_allowed")


async def _failed(request: Request, error: Exception) -> Response:
    message = "The server failed on this request. Its log says why."
    return errors.answer(500, message, kind=errors.SERVER, code="internal_error")


class _Catalogue:
    """The model that is served, and readiness. SGLang's own list of models shows where the weights are on disk."""

    def __init__(self, table: ReplicaTable, model: str, access: Access) -> None:
        self._table = table
        self._name = model
        self._access = access
        self._entry = {"id": model, "object": "model", "created": int(time.time()), "owned_by": "sparktier"}

    async def readyz(self, request: Request) -> Response:
        states = {state.value: self._table.count(state) for state in State}
        return JSONResponse({"replicas": states}, status_code=200 if self._table.pick() else 503)

    async def all(self, request: Request) -> Response:
        self._access.authenticate(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [self._entry]})

    async def one(self, request: Request) -> Response:
        self._access.authenticate(request.headers.get("authorization"))
        require_model(request.path_params["model"], self._name)
        return JSONResponse(self._entry)


@dataclass(frozen=True)
class _Served:
    """One admitted request: the name of its tier, and its permit."""

    tier: str
    permit: Permit

    def count(self, tokens: int) -> None:
        """Settle its tenant's limit on the `tokens` that it had."""
        self.permit.settle(tokens, now_s=time.monotonic())


def _tier_ask(request: Request, body: Mapping[str, Any]) -> TierAsk:
    return TierAsk(
        header=_header(request, TIER_HEADER),
        service_tier=body.get(SERVICE_TIER),
        tpot_ms=_header(request, TPOT_HEADER),
    )


def _header(request: Request, name: str) -> str | None:
    """Return a header's value; of one that was sent several times all of them, as HTTP has it."""
    return ", ".join(request.headers.getlist(name)) if name in request.headers else None


class _Generate:
    """The ASGI application of the routes that reach a replica: it sees a request through to its last byte."""

    def __init__(
        self, table: ReplicaTable, server: ServerSettings, client: AsyncReplicaClient, model: str, access: Access
    ) -> None:
        self._table = table
        self._server = server
        self._client = client
        self._model = model
        self._access = access
        self._in_flight = 0
        # Only requests that have arrived in full count as in flight.
        self._intake = BodyIntake(
            max_bytes=server.max_body_bytes, timeout_s=server.body_timeout_s, most=server.max_concurrent_requests
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        # What a request holds is released only when its answer has been sent.
        async with AsyncExitStack() as held:
            response = await self._answer(Request(scope, receive), held)
            await response(scope, receive, send)

    async def _answer(self, request: Request, held: AsyncExitStack) -> Response:
        deadline = asyncio.get_running_loop().time() + self._server.request_timeout_s
        tenant = self._access.authenticate(request.headers.get("authorization"))
        try:
            async with asyncio.timeout_at(deadline):
                if self._full:
                    return self._too_many()
                body = await self._intake.object_of(request)
                if self._full:
                    return self._too_many()
                held.enter_context(self._one_more())
                tier = self._access.tier(_tier_ask(request, body), tenant)
                replica = self._table.pick()
                if replica is None or replica.limits is None:
                    return _no_replica()
                # Taken at once: `work` starts later, and other requests pick a replica before it does.
                sent = held.enter_context(closing(RequestInFlight(replica)))
                body = checked(request.url.path, body, model=self._model, limits=replica.limits)
                permit = self._access.admit(load_of(body), tenant, now_s=time.monotonic())
                served = _Served(self._access.tiers.names[tier], held.enter_context(closing(permit)))
                body |= engine_fields(body, tier, tenant)
                work = self._forward(request.url.path, body, sent, served, held, deadline)
                response = await cancel_on_disconnect(request.receive, work) or Response(status_code=499)
                response.headers[TIER_HEADER] = served.tier
                return response
        except ClientDisconnect:
            return Response(status_code=499)
        except TimeoutError:
            return errors.answer(504, LATE, kind=errors.SERVER, code="timeout")
        except ReplicaLost:
            return errors.answer(502, LOST, kind=errors.SERVER, code="replica_lost")
        except asyncio.CancelledError:
            # Only uvicorn cancels us, at the end of its grace after a stop signal; the connection is still open.
            return errors.answer(503, STOPPING, kind=errors.SERVER, code="stopping", retry_after_s=_RETRY_AFTER_S)

    async def _forward(
        self,
        path: str,
        body: dict[str, Any],
        sent: RequestInFlight,
        served: _Served,
        held: AsyncExitStack,
        deadline: float,
    ) -> Response:
        """Send `body` on and return the answer, or the start of it where it is a stream."""
        edits = edits_for(body)
        upstream = await self._sent(path, to_json(usage.asking(body, tokens=served.permit.counts_tokens)), sent)
        held.push_async_callback(upstream.close)
        if upstream.is_event_stream:
            events = whole_events(upstream)
            held.push_async_callback(events.aclose)
            first = await anext(events, b"")
            hidden = served.permit.counts_tokens and not usage.asked(body)
            with_usage = usage.UsageStream(tier=served.tier, count=served.count, hidden=hidden).events

            def restate(events: bytes) -> bytes:
                return edited_events(with_usage(events), edits)

            if (refusal := errors.first_error(first, asked=body)) is not None:
                served.count(0)
            return refusal or EventRelay(first, events, deadline=deadline, restate=restate)
        content = await upstream.read()
        if upstream.status >= 400:
            served.count(0)
            return errors.from_engine(upstream.status, content, asked=body)
        answer = edited(usage.in_answer(content, tier=served.tier, count=served.count), edits)
        return Response(answer, media_type="application/json")

    async def _sent(self, path: str, content: bytes, sent: RequestInFlight) -> OpenAnswer:
        """Send `content` to the replica of `sent`, or to the next one where it takes no connection."""
        tried: list[Replica] = []
        while True:
            try:
                return await self._client.open(sent.replica.url + path, content)
            except ReplicaUnreachable:
                # Nothing was sent, so another replica can take it.
                tried.append(sent.replica)
                following = self._table.pick(besides=tried)
                if following is None:
                    raise
                sent.move_to(following)

    @property
    def _full(self) -> bool:
        return self._in_flight >= self._server.max_concurrent_requests

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _too_many(self) -> Response:
        message = f"The server answers {self._server.max_concurrent_requests} requests at once. Try again later."
        return errors.answer(
            429, message, kind=errors.OVERLOADED, code="too_many_requests", retry_after_s=_RETRY_AFTER_S
        )


def _no_replica() -> Response:
    message = "No replica is ready. Try again in a few seconds."
    return errors.answer(503, message, kind=errors.SERVER, code="not_ready", retry_after_s=_RETRY_AFTER_S)
