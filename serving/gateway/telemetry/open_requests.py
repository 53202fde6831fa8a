"""The requests that are in the gateway and the last that failed, for operators to whom somebody complains."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sparktier.serving.gateway.core.ask import Ask
from sparktier.serving.gateway.core.observer import Outcome, Phase

_MOST_FAILED = 100
_MOST_ROWS = 200
_HUNG_UP = 499
_FAILED = 500
_LIMITED = 429
# From then on a request is in trouble: not admitted, sent without a first token, or simply long.
_QUEUED_S, _SILENT_S, _LONG_S = 1.0, 10.0, 60.0


class OpenRequest:
    """One request in the gateway: how far it is, and since when, on the clock of `OpenRequests`."""

    def __init__(self, ask: Ask, now_s: float) -> None:
        self.ask, self.began_s = ask, now_s
        self.phase, self.since_s = "queued", now_s

    def reached(self, phase: Phase, now_s: float) -> None:
        """Note that it has reached `phase`."""
        self.phase, self.since_s = phase.value, now_s

    def trouble(self, now_s: float) -> str | None:
        """Return what is wrong with it, or None."""
        waited_s = now_s - self.since_s
        if self.phase == "queued" and waited_s >= _QUEUED_S:
            return "waits for room"
        if self.phase in (Phase.ADMITTED, Phase.SENT) and waited_s >= _SILENT_S:
            return "no token yet"
        return "long" if now_s - self.began_s >= _LONG_S else None


class OpenRequests:
    """All of them; `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[OpenRequest, None] = {}  # in the order in which they began
        self._failed: deque[dict[str, Any]] = deque(maxlen=_MOST_FAILED)

    def began(self, ask: Ask) -> OpenRequest:
        """Note a request that begins now."""
        one = OpenRequest(ask, self._clock())
        self._open[one] = None
        return one

    def reached(self, one: OpenRequest, phase: Phase) -> None:
        """Note that it has reached `phase`."""
        one.reached(phase, self._clock())

    def ended(self, one: OpenRequest, outcome: Outcome) -> None:
        """Note how it ended."""
        self._open.pop(one, None)
        if outcome.status >= _FAILED or outcome.status in (_LIMITED, _HUNG_UP):
            now_s = self._clock()
            row = self._row(one, now_s, trouble=f"ended with {outcome.status} {outcome.code}".strip())
            self._failed.append(row | {"tier": outcome.tier, "replica": outcome.replica, "ended_s": now_s})

    def rows(self) -> list[dict[str, Any]]:
        """Return those in trouble, the oldest first, then the last failures, the newest first."""
        now_s = self._clock()
        found = [(one, trouble) for one in self._open if (trouble := one.trouble(now_s)) is not None]
        rows = [self._row(one, now_s, trouble=trouble) for one, trouble in found]
        failed = [
            {
                **{key: value for key, value in row.items() if key != "ended_s"},
                "ended_ago_s": round(now_s - row["ended_s"], 1),
            }
            for row in reversed(self._failed)
        ]
        return [*rows, *failed][:_MOST_ROWS]

    def _row(self, one: OpenRequest, now_s: float, *, trouble: str) -> dict[str, Any]:
        return {
            "request_id": one.ask.request_id,
            "route": one.ask.kind.value,
            "tenant": one.ask.tenant.name,
            "tier": "",
            "replica": None,
            "phase": one.phase,
            "age_s": round(now_s - one.began_s, 1),
            "trouble": trouble,
            "ended_ago_s": None,
        }
