"""Asks for a key before anything on a replica's own port is answered: SGLang's routes, ours, and mounted applications.

SGLang's own check leaves `/metrics`, `/ready`, OPTIONS and web sockets open, so this one takes its place.
"""

import secrets
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# Probes of an orchestrator bring no key.
_OPEN = frozenset({"/health", "/health_generate"})
# What a front needs to serve, and SGLang's warm-up (`model_info`, `generate`) to end the start.
_FOR_REQUESTS = frozenset({
    "/v1/chat/completions", "/v1/completions", "/generate", "/metrics", "/model_info", "/ready", "/sparktier/ranks",
})  # fmt: skip
_REFUSAL = (
    "This port answers a replica's own deployment: send a key of its run as `Authorization: Bearer KEY` (found none "
    "that opens this path). The keys file that `sparktier up` prints has them."
)


def install() -> None:
    """Have SGLang put the guard where its own check would be; call it before the HTTP server is set up."""
    from sglang.srt.utils import auth

    auth.add_api_key_middleware = _add


def _add(app: Any, *, api_key: str, admin_api_key: str) -> None:
    app.add_middleware(KeyGuard, requests_key=api_key, admin_key=admin_api_key)


class KeyGuard:
    """Passes on to `app` what shows `admin_key`, or `requests_key` on a path for requests; all else is answered 401."""

    def __init__(self, app: ASGIApp, *, requests_key: str, admin_key: str) -> None:
        self._app = app
        self._requests = requests_key.encode()
        self._admin = admin_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "lifespan" or self._passes(scope):
            await self._app(scope, receive, send)
            return
        refusal = JSONResponse({"error": _REFUSAL}, status_code=401, headers={"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)

    def _passes(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in _OPEN:
            return True
        shown = _shown(scope)
        # Both are compared always, and in a time that tells nothing of how much of a key was right.
        admin, requests = (secrets.compare_digest(shown, key) for key in (self._admin, self._requests))
        return admin or (requests and path in _FOR_REQUESTS)


def _shown(scope: Scope) -> bytes:
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, key = header.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""
