"""Asks the ranks of a replica for their state, and hands them plans, through SGLang's own control requests.

Ranks answer between two steps. Every wait has an end, and a request that is still on its way is never sent again.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from sparktier.configs.errors import ReplicaError
from sparktier.configs.plan_keys import LATCH_KEY
from sparktier.serving.engine.telemetry.observer import ASKED_BY_US, STATES
from sparktier.serving.engine.telemetry.rank_state import RankState, load

# Who asks more often gets the same answer: asking can't slow the ranks down.
_FRESH_S = 0.1
# Shorter than what scrapers wait, the front's page among them: they get the reason.
_LATE_S = 8.0
Answer = TypeVar("Answer")


class Reading(NamedTuple):
    """What the ranks said: `seq` counts readings, `at_ms` is the time of day of this one."""

    seq: int
    at_ms: int
    states: list[RankState]


class RankReader:
    """The ranks behind SGLang's `tokenizer_manager`, and their latest answer."""

    def __init__(self, tokenizer_manager: Any) -> None:
        self._manager = tokenizer_manager
        self._asking: asyncio.Task[Reading] | None = None
        self._sending: asyncio.Task[list[bool]] | None = None
        self._asked_s = self._sent_s = self._answered_s = 0.0
        self._seq = 0

    async def read(self) -> Reading:
        """Return an answer that is fresh; who comes while the ranks are being asked shares theirs.

        Raises:
            ReplicaError: a rank does not answer. It is not asked again before it has, so nothing queues up.
        """
        if self._asking is None or (self._asking.done() and not self._fresh(self._asking)):
            self._asked_s = time.monotonic()
            self._asking = asyncio.create_task(self._ask())
        return await _within(self._asking, since_s=self._asked_s)

    async def take_plan(self, keys: Mapping[str, float]) -> str | None:
        """Have every rank take the plan of `keys`; return why one refused it, or None.

        Raises:
            ReplicaError: a rank does not answer, or the plan before this is still on its way.
        """
        if all(await self._send(keys)):
            return None
        if self._asking is not None and not self._asking.done():
            # Asked before the plan was sent, so it may not know of the refusal.
            await _within(self._asking, since_s=self._asked_s)
        self._answered_s = -_FRESH_S
        refused = {state.refused for state in (await self.read()).states} - {None}
        return "; ".join(sorted(map(str, refused))) or "a rank refused it, and has taken another since"

    async def latch(self, latched: bool) -> bool:
        """Have every rank hold rung 0 whatever plans say, or end that; return whether all took the order.

        Raises:
            ReplicaError: a rank does not answer, or a plan is still on its way.
        """
        return all(await self._send({LATCH_KEY: float(latched)}))

    async def _send(self, keys: Mapping[str, float]) -> list[bool]:
        """Return whether each rank took `keys`; what was read before is stale then."""
        from sglang.srt.managers.io_struct import SetInternalStateReq

        if self._sending is not None and not self._sending.done():
            raise ReplicaError(
                "A plan must reach every rank before the next is sent (one is on its way). Send it again."
            )
        self._sent_s = time.monotonic()
        self._sending = asyncio.create_task(
            self._manager.set_internal_state(SetInternalStateReq(server_args=dict(keys)))
        )
        taken = await _within(self._sending, since_s=self._sent_s)
        if all(taken):
            self._answered_s = -_FRESH_S
        return taken

    def _fresh(self, answered: "asyncio.Task[Reading]") -> bool:
        return answered.exception() is None and time.monotonic() - self._answered_s <= _FRESH_S

    async def _ask(self) -> Reading:
        from sglang.srt.managers.io_struct import GetInternalStateReq

        self._manager.auto_create_handle_loop()
        answers = await self._manager.get_internal_state_communicator(GetInternalStateReq(rid=ASKED_BY_US))
        # The age is by a clock that is never set; the controller is told the time of day.
        self._answered_s = time.monotonic()
        self._seq += 1
        # Each attention group answers, and unless control messages stay within a group, each for all ranks.
        states = (state for answer in answers for state in load(answer.internal_state[STATES]))
        return Reading(self._seq, round(time.time() * 1000), list({state.tp_rank: state for state in states}.values()))


async def _within(task: "asyncio.Task[Answer]", *, since_s: float) -> Answer:
    """Return the result of `task`, begun at `since_s`. It is not cancelled when late: SGLang would take its answer for
    that to the next request. Who comes when it is late already doesn't wait at all.
    """
    try:
        async with asyncio.timeout(max(0.0, since_s + _LATE_S - time.monotonic())):
            return await asyncio.shield(task)
    except TimeoutError:
        if task.done():
            return task.result()
        raise ReplicaError(
            f"Every rank must answer between two steps (one has not within {_LATE_S:g} s). A step takes longer, or the"
            " rank hangs: see the replica's log."
        ) from None
