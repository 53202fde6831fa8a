"""The console's routes on the internal listener: the page with its files, what it reads, and what it may do."""

import hashlib
import json
import logging
import re
from base64 import b64encode
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from sparktier.configs.contracts.latch import LatchOrder
from sparktier.configs.contracts.order import ReplicaOrder
from sparktier.configs.errors import ReplicaError
from sparktier.serving.gateway.console.guard import Denied, Guard
from sparktier.serving.gateway.console.sources import Sources

logger = logging.getLogger(__name__)
_MOST_BYTES = 4096
_LATCHES = {"latch": True, "unlatch": False}


def console_routes(sources: Sources, guard: Guard) -> list[BaseRoute]:
    """Return the routes below `/console`."""
    folder = Path(str(resources.files("sparktier.serving.gateway.console").joinpath("static")))
    page = (folder / "index.html").read_text(encoding="utf-8")
    headers = _headers(page)

    async def index(request: Request) -> Response:
        # The page has no facts of the deployment; it is refused under another name all the same.
        denied = guard.reading({"host": request.headers.get("host", ""), "authorization": f"Bearer {guard.admin_key}"})
        return _denied(denied) if denied else Response(page, media_type="text/html", headers=headers)

    async def state(request: Request) -> Response:
        denied = guard.reading(request.headers)
        return _denied(denied) if denied else _json(await sources.state())

    async def decisions(request: Request) -> Response:
        if (denied := guard.reading(request.headers)) is not None:
            return _denied(denied)
        after = request.query_params.get("after", "0")
        return _json(await sources.decisions(int(after) if after.isdecimal() else 0))

    async def act(request: Request) -> Response:
        if (denied := guard.acting(request.headers)) is not None:
            logger.warning("console: an action was refused (%s): %s", _peer(request), denied.reason)
            return _denied(denied)
        try:
            wanted = json.loads((await request.body())[:_MOST_BYTES])
            actor, replica, action = wanted["actor"], wanted["replica"], wanted["action"]
            refused = await _done(sources, replica, action, wanted)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            return _json({"error": f"An action needs actor, replica and action ({type(error).__name__})."}, status=400)
        except (ReplicaError, TimeoutError) as error:
            return _json({"error": f"It does not answer: {error}"}, status=503)
        told = "taken" if refused is None else f"refused: {refused}"
        logger.warning("console: %r (%s) orders %s of %s: %s", actor, _peer(request), action, replica, told)
        return _json({"done": True}) if refused is None else _json({"error": refused}, status=409)

    return [
        Route("/console", index, methods=["GET"]),
        Route("/console/api/state", state, methods=["GET"]),
        Route("/console/api/decisions", decisions, methods=["GET"]),
        Route("/console/api/actions", act, methods=["POST"]),
        Mount("/console/static", StaticFiles(directory=folder)),
    ]


async def _done(sources: Sources, replica: str, action: str, wanted: dict[str, Any]) -> str | None:
    """Do `action`; return why it was refused, or None. Raises ValidationError, ReplicaError."""
    if action in _LATCHES:
        reason = str(wanted.get("reason", "from the console"))
        return await sources.latch(replica, LatchOrder(latched=_LATCHES[action], actor=wanted["actor"], reason=reason))
    order = {"replica_id": replica, "action": action, "rung": wanted.get("rung"), "actor": wanted["actor"]}
    return await sources.order(ReplicaOrder.model_validate(order))


def _headers(page: str) -> dict[str, str]:
    """Nothing from elsewhere may run in the page, and no other page may show it in a frame."""
    inline = "".join(re.findall(r'<script type="importmap">(.*?)</script>', page, flags=re.DOTALL))
    digest = b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline';"
        " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def _peer(request: Request) -> str:
    return "unknown" if request.client is None else request.client.host


def _denied(denied: Denied) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if denied.status == 401 else None
    return JSONResponse({"error": denied.reason}, status_code=denied.status, headers=headers)


def _json(value: Any, *, status: int = 200) -> Response:
    return JSONResponse(value, status_code=status, headers={"Cache-Control": "no-store"})
