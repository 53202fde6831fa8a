"""The public HTTP front: OpenAI's routes over the core, and health.

SGLang's OpenAI server, unchanged, does the rest. Only the routes listed here reach a replica: clients can't reach its
admin endpoints.
"""

import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparktier.serving.gateway.core import request_ids
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.http import openai_errors as errors
from sparktier.serving.gateway.http import openapi
from sparktier.serving.gateway.http.generate import FAILED, KINDS, Generate
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.replica_life import State
from sparktier.serving.gateway.requests.rules import require_model
from sparktier.serving.gateway.routing import ReplicaTable

# SGLang has them, but no tier and no tenant gets through them.
_NOT_SERVED = ("/v1/responses", "/v1/messages")


def front(gateway: Gateway) -> ASGIApp:
    """Return the application for clients of `gateway`."""
    generate = Generate(gateway)
    catalogue = _Catalogue(gateway)
    others = Starlette(
        routes=[
            # Here for the methods that they don't have.
            *(Route(path, generate, methods=["POST"]) for path in KINDS),
            Route("/v1/models", catalogue.all, methods=["GET"]),
            Route("/v1/models/{model:path}", catalogue.one, methods=["GET"]),
            Route(openapi.PATH, _documented(gateway.model), methods=["GET"]),
            *health_routes(gateway.table),
        ],
        exception_handlers={Refused: _refused, 404: not_found, 405: _wrong_method, 500: _failed},
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in KINDS:
            await generate(scope, receive, send)
        else:
            await others(scope, receive, _with_request_id(scope, send))

    return app


def _documented(model: str) -> Callable[[Request], Awaitable[Response]]:
    document = openapi.document(model)

    async def documented(request: Request) -> Response:
        return JSONResponse(document)

    return documented


def health_routes(table: ReplicaTable) -> list[Route]:
    """Return the routes that say whether the process, and any replica of `table`, is up."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        states = {state.value: table.count(state) for state in State}
        return JSONResponse({"replicas": states}, status_code=200 if table.serving else 503)

    return [Route("/healthz", healthz, methods=["GET"]), Route("/readyz", readyz, methods=["GET"])]


async def not_found(request: Request, error: Exception) -> Response:
    """Answer a path that there is not."""
    if request.url.path in _NOT_SERVED:
        message = f"{request.url.path} is not served. Use /v1/chat/completions."
        return _response(Refused(message, status=404, code="not_served"))
    return _response(Refused(f"No such path: {request.url.path[:200]}", status=404, code="not_found"))


def _with_request_id(scope: Scope, send: Send) -> Send:
    if scope["type"] != "http":
        return send
    header = (
        request_ids.HEADER.encode(),
        request_ids.kept_or_new(Headers(scope=scope).get(request_ids.HEADER)).encode(),
    )

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], header]
        await send(message)

    return sent


def _response(error: Refused) -> Response:
    return JSONResponse(errors.body(error), status_code=error.status, headers=errors.headers(error))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _response(error)


async def _wrong_method(request: Request, error: Exception) -> Response:
    message = f"{request.method} is not allowed on {request.url.path}"
    return _response(Refused(message, status=405, code="method_not_allowed"))


async def _failed(request: Request, error: Exception) -> Response:
    return _response(Refused(FAILED, status=500, code="internal_error"))


class _Catalogue:
    """The model that is served. SGLang's own list of models shows where the weights are on disk."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._entry = {"id": gateway.model, "object": "model", "created": int(time.time()), "owned_by": "sparktier"}

    async def all(self, request: Request) -> Response:
        await self._gateway.authenticate(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [self._entry]})

    async def one(self, request: Request) -> Response:
        await self._gateway.authenticate(request.headers.get("authorization"))
        require_model(request.path_params["model"], self._gateway.model)
        return JSONResponse(self._entry)
