"""The plan in force on one rank: which it takes, when its time is over, and what is read back of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparktier.configs.plan_keys import EnginePlan, Rung, plan_of, refusals
from sparktier.serving.engine.rank_options import RankOptions, rank_options


@dataclass(frozen=True)
class PlanExpired:
    """What rank 0 tells all ranks, itself included, in the pass of their loop that finds a plan's time over.

    Each rank's clock would name another step, and ranks on different rungs wait for each other for ever.
    """

    epoch: int
    version: int


@dataclass(frozen=True)
class LatchSet:
    """What rank 0 tells all ranks: to hold rung 0 from now on, because of `cause`."""

    cause: str


class PlanInForce:
    """The last plan that this rank took, the time it has left, and why the last refused one was refused.

    `highest` ends the engine's ladder; `safe` is the ceiling of the rung once a plan's time is over. `clock` returns
    monotonic seconds. `latched` is why rung 0 holds whatever plans say; no plan ends that, `resume` does,
    which `resumes` counts.
    """

    def __init__(
        self, start: EnginePlan, *, highest: Rung, safe: Rung, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan = start
        self._highest, self._safe, self._clock = highest, safe, clock
        self._taken_s: float | None = None
        self._to_latch: str | None = None
        self.expired = False
        self.refused: str | None = None
        self.latched: str | None = None
        self.resumes = 0

    @property
    def plan(self) -> EnginePlan:
        """What the rank applies: the plan as it was sent, with a ceiling on its rung.

        That is the safe rung once the plan is expired, and rung 0 while the rank is latched.
        """
        if self.latched is not None:
            return replace(self._plan, rung=Rung.OFF)
        return replace(self._plan, rung=min(self._plan.rung, self._safe)) if self.expired else self._plan

    def take(self, keys: Mapping[str, float]) -> str | None:
        """Put the plan of `keys` in force; or change nothing, and return why not."""
        wrong = refusals(keys, before=self._plan, highest=self._highest)
        self.refused = "; ".join(wrong) or None
        if self.refused is None:
            self._plan, self._taken_s, self.expired = plan_of(keys), self._clock(), False
        return self.refused

    def ask_latch(self, cause: str) -> None:
        """Have all ranks told to latch in the next pass of their loop; call it on rank 0."""
        self._to_latch = cause

    def latch_asked(self) -> LatchSet | None:
        """Return what all ranks are to be told now, once."""
        cause, self._to_latch = self._to_latch, None
        return None if cause is None else LatchSet(cause)

    def latch(self, cause: str) -> None:
        """Hold rung 0 from now on. The first cause is kept."""
        self.latched = self.latched or cause

    def resume(self) -> None:
        """Let plans decide again."""
        self.latched = self._to_latch = None
        self.resumes += 1

    def time_is_over(self) -> PlanExpired | None:
        """Return what all ranks are to be told now, unless the plan has time left or they know."""
        ttl_ms, age_ms = self._plan.ttl_ms, self.age_ms
        if self.expired or ttl_ms is None or age_ms is None or age_ms <= ttl_ms:
            return None
        return PlanExpired(self._plan.epoch, self._plan.version)

    def expire(self, told: PlanExpired) -> None:
        """End the time of the plan in force, if it is the one that is `told` of."""
        if (told.epoch, told.version) == (self._plan.epoch, self._plan.version):
            self.expired = True

    @property
    def age_ms(self) -> int | None:
        """Time since this rank took its plan; None for the one it started with."""
        return None if self._taken_s is None else round((self._clock() - self._taken_s) * 1000.0)

    def read_back(self) -> dict[str, Any]:
        """Return everything in force as plain values, and the last refusal since."""
        state = {"expired": self.expired, "refused": self.refused, "latched": self.latched}
        return {**self.plan.read_back(), "age_ms": self.age_ms, **state}


def start_plan(options: RankOptions, *, highest: Rung) -> EnginePlan:
    """Return the plan of a rank that has been sent none: the whole ladder, and the tiers that it was started with."""
    return EnginePlan(rung=highest, seats=options.seats, default_tier=options.default_tier, tiers=options.tiers)


def plan_in_force(scheduler: Any) -> PlanInForce:
    """Return the plan in force on the rank of SGLang's `scheduler`, made at the first call."""
    found: PlanInForce | None = getattr(scheduler, "sparktier_plan", None)
    if found is None:
        highest, options = getattr(scheduler.draft_worker, "highest_rung", Rung.OFF), rank_options()
        start = start_plan(options, highest=highest)
        found = PlanInForce(start, highest=highest, safe=min(Rung(options.safe_rung), highest))
        scheduler.sparktier_plan = found
    return found
