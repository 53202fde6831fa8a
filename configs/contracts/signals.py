"""`Signals`, from a replica to the controller: its load, and what the plan in force costs and yields."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparktier.configs.contracts.message import (
    Count,
    Fraction,
    Message,
    Millis,
    Part,
    Positive,
    Rate,
    ReplicaId,
    RungNumber,
    RunState,
    Spread,
    require_unique,
)
from sparktier.configs.settings.tiers import TierId


class RankLoad(Part):
    """What one attention group of a replica carries."""

    dp_rank: Count
    running: Mapping[TierId, Count]
    queued: Mapping[TierId, Count]
    kv_used_frac: Fraction
    context_tokens_p50: Count


class TierInForce(Part):
    """A tier as the ranks serve it. `promise_tok_s` None promises nothing, `cap_tokens` None bounds nothing."""

    promise_tok_s: Positive | None
    weight: Positive
    cap_tokens: Count | None


class CanaryReport(Part):
    """What the losslessness canary has found since the start.

    Tokens scored, those of them far from the target's choice, and how near the evidence is to the next alarm. Steps
    that scored, of all `steps`. `acceptance` is whether drafts are accepted absurdly often or seldom.
    """

    state: Literal["off", "watching", "alarmed"]
    scored_tokens: Count
    alarms: Count
    far_tokens: Count = 0
    level_frac: Fraction = 0.0
    score_steps: Count = 0
    steps: Count = 0
    acceptance: Literal["usual", "high", "low"] = "usual"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.alarms > self.scored_tokens:
            raise ValueError("alarms must not exceed scored_tokens")
        return self


class Signals(Message):
    """What all ranks of a replica tell of themselves. None and a missing tier mean: not known.

    `epoch`, `plan_version`, `plan_age_ms`, `expired`, `rung`, `rows` and `shares` are what every rank applies; both
    numbers are 0 before the first plan. `state` and `caps` (most users of each tier that is bounded) are what its HTTP
    process keeps. `rung` has the safe rung as its ceiling once the plan is `expired`. `seq`
    counts readings of this replica's process, `at_ms` is the time of day of this one.
    `step_ms` is a moving average by rung, `drift_frac` measured over predicted step time, `prefill_frac` the part of
    engine time spent in prefill. A `latched` replica holds rung 0 whatever plans say, because of `latch_cause`.
    By tier: `queue_age_ms` of the oldest request that waits, `arrivals_s` a second,
    `accept_by_position` the acceptance of the k-th drafted token in a recent window, `accepted_tokens` a step of each
    user and `predicted_tokens` the planner's mean of it, `tok_s_per_user`, and `met`: since the
    start, how many met their promise, and how many ended with tokens enough to tell.
    """

    replica_id: ReplicaId
    epoch: Count
    seq: Count
    at_ms: Millis
    plan_version: Count
    plan_age_ms: Millis | None = None
    expired: bool = False
    rung: RungNumber
    rows: Count
    shares: Mapping[TierId, TierInForce]
    default_tier: TierId | None = None
    state: RunState | None = None
    caps: Mapping[TierId, Count] | None = None
    latched: bool | None = None
    latch_cause: str | None = None
    drift_frac: Positive | None = None
    max_running: Annotated[int, Field(ge=1)] | None = None
    kv_tokens: Annotated[int, Field(ge=1)] | None = None
    prefill_ms_per_token: Rate | None = None
    ranks: Annotated[tuple[RankLoad, ...], Field(min_length=1, strict=False)]
    queue_age_ms: Mapping[TierId, Millis] = {}
    arrivals_s: Mapping[TierId, Rate] = {}
    step_ms: Mapping[RungNumber, Rate]
    prefill_frac: Fraction
    accept_by_position: Mapping[TierId, Annotated[tuple[Fraction, ...], Field(strict=False)]]
    accepted_tokens: Mapping[TierId, Spread] = {}
    predicted_tokens: Mapping[TierId, Rate] = {}
    tok_s_per_user: Mapping[TierId, Spread]
    met: Mapping[TierId, Annotated[tuple[Count, Count], Field(strict=False)]] = {}
    canary: CanaryReport

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require_unique("ranks", [rank.dp_rank for rank in self.ranks])
        for tier, (met, ended) in self.met.items():
            if met > ended:
                raise ValueError(f"tier {tier} must not have met more promises than requests that ended")
        return self
