"""Our routes on a replica's own port, beside SGLang's: ranks, signals, metrics. The port asks for keys.

The routes ask the ranks by SGLang's internal-state request, which ranks answer between two steps.
"""

import asyncio
import itertools
import logging
import struct
import time
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from sparktier.configs.errors import ReplicaError
from sparktier.serving.engine.telemetry.metrics import exposition
from sparktier.serving.engine.telemetry.observer import ASKED_BY_US, STATES
from sparktier.serving.engine.telemetry.rank_state import RankReport, RankState, load
from sparktier.serving.engine.telemetry.signals import signals_of

# More frequent requests share one answer, so that requests can't slow the ranks down.
_FRESH_S = 0.1
# Shorter than the timeouts of scrapers (the front's page is one), so that they get the reason.
_LATE_S = 8.0
logger = logging.getLogger(__name__)


def admin_routes(reports: list[RankReport], tokenizer_manager: Any, *, replica_id: str) -> APIRouter:
    """Return the routes of the replica `replica_id`; `reports` are those of its ranks at their start."""
    router = APIRouter()
    states, seq = _States(tokenizer_manager), itertools.count(1)

    @router.get("/sparktier/ranks")
    def ranks() -> list[RankReport]:
        return reports

    @router.get("/sparktier/signals")
    async def signals() -> Response:
        try:
            at_ms, found = await states.read()
            message = signals_of(found, replica_id=replica_id, seq=next(seq), at_ms=at_ms)
        except ReplicaError as error:
            return _unavailable(error)
        return Response(message.model_dump_json(), media_type="application/json")

    @router.get("/metrics")
    async def metrics() -> Response:
        try:
            _, found = await states.read()
        except ReplicaError as error:
            return _unavailable(error)
        theirs = await asyncio.to_thread(_sglang_metrics)
        return Response(exposition(found) + theirs, headers={"Content-Type": CONTENT_TYPE_LATEST})

    @router.get("/sparktier/metrics")
    async def own_metrics() -> Response:
        # Without SGLang's metrics: reading their files takes as long as a step of a small model.
        try:
            _, found = await states.read()
        except ReplicaError as error:
            return _unavailable(error)
        return Response(exposition(found), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def _unavailable(error: ReplicaError) -> Response:
    return JSONResponse({"error": str(error)}, status_code=503)


class _States:
    """The latest answer of the ranks, and when it was given in milliseconds since 1970."""

    def __init__(self, tokenizer_manager: Any) -> None:
        self._manager = tokenizer_manager
        self._asking: asyncio.Task[tuple[int, list[RankState]]] | None = None
        self._answered_s = 0.0

    async def read(self) -> tuple[int, list[RankState]]:
        """Return a fresh answer; calls that arrive while the ranks are asked share one.

        Raises:
            ReplicaError: a rank does not answer in time. It is not asked again until it has, so nothing queues up.
        """
        if self._asking is None or (self._asking.done() and not self._fresh(self._asking)):
            self._asking = asyncio.create_task(self._ask())
        asked = self._asking
        # Not cancelled when late: SGLang would take the late answer for the next question's.
        await asyncio.wait([asked], timeout=_LATE_S)
        if not asked.done():
            raise ReplicaError(
                f"Every rank must answer between two steps (one has not within {_LATE_S:g} s). A step takes longer, or "
                "the rank hangs: see the replica's log."
            )
        return asked.result()

    def _fresh(self, answered: "asyncio.Task[tuple[int, list[RankState]]]") -> bool:
        return answered.exception() is None and time.monotonic() - self._answered_s <= _FRESH_S

    async def _ask(self) -> tuple[int, list[RankState]]:
        from sglang.srt.managers.io_struct import GetInternalStateReq

        self._manager.auto_create_handle_loop()
        answers = await self._manager.get_internal_state_communicator(GetInternalStateReq(rid=ASKED_BY_US))
        # The age is measured by a clock that is never set back; the controller gets the time of day.
        self._answered_s = time.monotonic()
        at_ms = round(time.time() * 1000)
        # Each attention group answers; unless control messages stay within groups, each answers for all ranks.
        states = (state for answer in answers for state in load(answer.internal_state[STATES]))
        return at_ms, list({state.tp_rank: state for state in states}.values())


def _sglang_metrics() -> bytes:
    """Return the metrics that SGLang's processes on this node keep in files; nothing if the files are broken."""
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    except (OSError, ValueError, RuntimeError, struct.error) as error:
        logger.error("SGLang's metrics are missing on /metrics: their files must be whole (found %s)", error)
        return b""
