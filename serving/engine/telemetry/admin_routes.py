"""Our routes on a replica's own port, beside SGLang's: ranks, signals, ended requests, plan, latch, metrics.

That port asks for keys.
"""

import asyncio
import logging
import struct
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from sparktier.configs.contracts.latch import LatchOrder
from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.plan import Plan
from sparktier.configs.errors import ContractError, ReplicaError
from sparktier.configs.plan_keys import engine_plan, keys_of
from sparktier.serving.engine.room import RoomKeeper
from sparktier.serving.engine.telemetry.ended_requests import EndedRequests
from sparktier.serving.engine.telemetry.metrics import exposition
from sparktier.serving.engine.telemetry.rank_reader import RankReader
from sparktier.serving.engine.telemetry.rank_state import RankReport
from sparktier.serving.engine.telemetry.signals import signals_of

logger = logging.getLogger(__name__)
_FIXED_DEPTH = (
    "A latch must go to an engine with a ladder (found one whose depth is fixed by its speculation.method). Take the"
    " replica out of the deployment instead."
)


def admin_routes(
    reports: list[RankReport],
    tokenizer_manager: Any,
    ended_requests: EndedRequests,
    room: RoomKeeper,
    *,
    replica_id: str,
) -> APIRouter:
    """Return the routes of the replica `replica_id`; `reports` are those of its ranks at their start."""
    router = APIRouter()
    reader = RankReader(tokenizer_manager)

    @router.get("/sparktier/ranks")
    def ranks() -> list[RankReport]:
        return reports

    @router.get("/sparktier/signals")
    async def signals() -> Response:
        try:
            seq, at_ms, states = await reader.read()
            message = signals_of(states, replica_id=replica_id, seq=seq, at_ms=at_ms)
        except ReplicaError as error:
            return _unavailable(error)
        kept = message.model_copy(update={"state": room.state, "caps": room.caps})
        return Response(kept.model_dump_json(), media_type="application/json")

    @router.get("/sparktier/ended")
    async def ended(after: Annotated[int, Query(ge=0)] = 0) -> Response:
        states = tokenizer_manager.rid_to_state.values()
        page = ended_requests.page(after, replica_id=replica_id, states=states)
        return Response(page.model_dump_json(), media_type="application/json")

    _add_orders(router, reader, room, replica_id)
    _add_metrics(router, reader)
    return router


def _add_metrics(router: APIRouter, reader: RankReader) -> None:
    @router.get("/metrics")
    async def metrics() -> Response:
        try:
            reading = await reader.read()
        except ReplicaError as error:
            return _unavailable(error)
        theirs = await asyncio.to_thread(_sglang_metrics)
        return Response(exposition(reading.states) + theirs, headers={"Content-Type": CONTENT_TYPE_LATEST})

    @router.get("/sparktier/metrics")
    async def own_metrics() -> Response:
        # Without SGLang's metrics: reading their files takes as long as a step of a small model.
        try:
            reading = await reader.read()
        except ReplicaError as error:
            return _unavailable(error)
        return Response(exposition(reading.states), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _add_orders(router: APIRouter, reader: RankReader, room: RoomKeeper, replica_id: str) -> None:
    """Add what changes what the ranks do: plans, and the latch."""

    @router.post("/sparktier/plan")
    async def plan(request: Request) -> Response:
        try:
            message = read_message(Plan, await request.body())
            refused = await reader.take_plan(keys_of(engine_plan(message, replica_id)))
        except ContractError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except ReplicaError as error:
            return _unavailable(error)
        if refused is not None:
            return JSONResponse({"error": f"The ranks refused the plan: {refused}"}, status_code=409)
        room.put(message, replica_id)
        return JSONResponse({"epoch": message.epoch, "version": message.version})

    @router.post("/sparktier/latch")
    async def latch(request: Request) -> Response:
        try:
            order = read_message(LatchOrder, await request.body())
            taken = await reader.latch(order.latched)
        except ContractError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except ReplicaError as error:
            return _unavailable(error)
        if not taken:
            return JSONResponse({"error": _FIXED_DEPTH}, status_code=409)
        done = "latched off" if order.latched else "resumed"
        logger.warning("speculation is %s by order of %r: %r", done, order.actor, order.reason)
        return JSONResponse({"latched": order.latched})


def _unavailable(error: ReplicaError) -> Response:
    return JSONResponse({"error": str(error)}, status_code=503)


def _sglang_metrics() -> bytes:
    """Return the metrics that SGLang's processes on this node keep in files; nothing if the files are broken."""
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    except (OSError, ValueError, RuntimeError, struct.error) as error:
        logger.error("SGLang's metrics are missing on /metrics: their files must be whole (found %s)", error)
        return b""
