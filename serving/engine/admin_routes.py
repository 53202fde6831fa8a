"""Our routes on a replica's own port, beside SGLang's: ranks, signals, metrics. That port asks for keys.

Asks the ranks through SGLang's internal-state request, which they answer between two steps. Knows nothing of what the
answers mean.
"""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from sparktier.configs.errors import ReplicaError
from sparktier.serving.engine.metrics import exposition
from sparktier.serving.engine.observer import ASKED_BY_US, STATES
from sparktier.serving.engine.rank_actor import RankReport
from sparktier.serving.engine.rank_state import RankState, load
from sparktier.serving.engine.signals import signals_of

# Whoever asks more often gets the same answer: nobody can slow the ranks down by asking.
_FRESH_S = 0.1


def admin_routes(reports: list[RankReport], tokenizer_manager: Any, *, replica_id: str) -> APIRouter:
    """Return the routes of the replica `replica_id`, whose ranks said `reports` when they started."""
    router = APIRouter()
    states = _States(tokenizer_manager)

    @router.get("/sparktier/ranks")
    def ranks() -> list[RankReport]:
        return reports

    @router.get("/sparktier/signals")
    async def signals() -> Response:
        at_s, found = await states.read()
        try:
            message = signals_of(found, replica_id=replica_id, at_ms=int(at_s * 1000))
        except ReplicaError as error:
            return JSONResponse({"error": str(error)}, status_code=503)
        return Response(message.model_dump_json(), media_type="application/json")

    @router.get("/metrics")
    async def metrics() -> Response:
        _, found = await states.read()
        theirs = await asyncio.to_thread(_sglang_metrics)
        return Response(exposition(found) + theirs, headers={"Content-Type": CONTENT_TYPE_LATEST})

    @router.get("/sparktier/metrics")
    async def own_metrics() -> Response:
        # SGLang's part is read from files and costs as much as a step of a small model.
        _, found = await states.read()
        return Response(exposition(found), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


class _States:
    """The latest answer of the ranks and when it was given, in seconds since 1970."""

    def __init__(self, tokenizer_manager: Any) -> None:
        self._manager = tokenizer_manager
        self._lock = asyncio.Lock()
        self._at_s = 0.0
        self._found: list[RankState] = []

    async def read(self) -> tuple[float, list[RankState]]:
        async with self._lock:
            if time.time() - self._at_s > _FRESH_S:
                self._found = await self._ask()
                self._at_s = time.time()
            return self._at_s, self._found

    async def _ask(self) -> list[RankState]:
        from sglang.srt.managers.io_struct import GetInternalStateReq

        self._manager.auto_create_handle_loop()
        answers = await self._manager.get_internal_state_communicator(GetInternalStateReq(rid=ASKED_BY_US))
        # Each attention group answers, and unless control messages stay within a group, each for all ranks.
        states = (state for answer in answers for state in load(answer.internal_state[STATES]))
        return list({state.tp_rank: state for state in states}.values())


def _sglang_metrics() -> bytes:
    """What SGLang's processes on this node keep in files for Prometheus."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
