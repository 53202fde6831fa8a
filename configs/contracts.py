"""The messages between the parts of sparktier: signals up, plans down, decisions into the log.

The contract of the design's section 6. Every message carries `schema_version`: a receiver refuses one it does not know
instead of misreading it.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from sparktier.configs.settings.tiers import TierId

ReplicaId = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Rung = Annotated[int, Field(ge=0, le=15)]
"""A step of the replica's ladder of depths. 0 is off; a higher one verifies more rows."""
Millis = Annotated[int, Field(ge=0)]
"""Milliseconds: since 1970 in `*at_ms`, a duration elsewhere."""
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
    )


class _Message(_Part):
    schema_version: Literal[1] = 1


class RankLoad(_Part):
    """What one attention group of a replica carries."""

    dp_rank: Count
    running: Mapping[TierId, Count]
    queued: Mapping[TierId, Count]
    kv_used_frac: Fraction
    context_tokens_p50: Count


class UserSpeed(_Part):
    """Tokens per second that users of a tier get: the 5th percentile and the median."""

    p5: Rate
    p50: Rate

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.p5 > self.p50:
            raise ValueError("p5 must not exceed p50")
        return self


class CanaryReport(_Part):
    """What the losslessness canary has found: answers scored, and how many differed beyond the noise floor."""

    state: Literal["off", "watching", "alarmed"]
    scored: Count
    alarms: Count

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.alarms > self.scored:
            raise ValueError("alarms must not exceed scored")
        return self


class StepShare(_Part):
    """What a tier gets of each step: tokens verified for each of its requests, and its weight in the rest."""

    floor_tokens: Count
    cap_tokens: Count
    weight: Rate


class Signals(_Message):
    """From an engine to the controller: load, and what the depth in force costs and yields.

    `plan_version`, `rung`, `rows` and `shares` (of the tiers that it names) are the whole plan in force on every rank;
    version 0 is none yet. `step_ms` is a moving average by rung, `prefill_frac` the part of engine time spent in
    prefill, `accept_by_position` the acceptance of the k-th drafted token in a recent window.
    """

    replica_id: ReplicaId
    at_ms: Millis
    plan_version: Count
    rung: Rung
    rows: Count
    shares: Mapping[TierId, StepShare]
    ranks: Annotated[tuple[RankLoad, ...], Field(min_length=1, strict=False)]
    step_ms: Mapping[Rung, Rate]
    prefill_frac: Fraction
    accept_by_position: Mapping[TierId, Annotated[tuple[Fraction, ...], Field(strict=False)]]
    tok_s_per_user: Mapping[TierId, UserSpeed]
    canary: CanaryReport

    @model_validator(mode="after")
    def _one_report_a_rank(self) -> Self:
        _require_unique("ranks", [rank.dp_rank for rank in self.ranks])
        return self


class TierShare(_Part):
    """What a tier gets on one replica: users admitted, tokens verified a step for each, and its weight in the rest."""

    cap_users: Count
    floor_tokens: Count
    cap_tokens: Count
    weight: Rate

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.floor_tokens > self.cap_tokens:
            raise ValueError("floor_tokens must not exceed cap_tokens")
        return self


class ReplicaPlan(_Part):
    """Where a replica is, whether it takes requests, and how deep it speculates."""

    replica_id: ReplicaId
    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    state: Literal["serving", "draining", "off"]
    rung: Rung
    rows: Count
    tiers: Mapping[TierId, TierShare]


class Plan(_Message):
    """From the controller to engines and gateways: who may use what, until `issued_at_ms + ttl_ms`."""

    version: Annotated[int, Field(ge=1)]
    issued_at_ms: Millis
    ttl_ms: Annotated[int, Field(ge=1)]
    tiers: Mapping[TierId, str]
    replicas: Annotated[tuple[ReplicaPlan, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _require_unique("replicas", [replica.replica_id for replica in self.replicas])
        for replica in self.replicas:
            if unknown := sorted(set(replica.tiers) - set(self.tiers)):
                raise ValueError(f"replica {replica.replica_id} has shares for tiers that are not listed: {unknown}")
        return self

    def expired(self, now_ms: int) -> bool:
        """Return whether the plan no longer holds at `now_ms`."""
        return now_ms > self.issued_at_ms + self.ttl_ms


class Depth(_Part):
    """How deep a replica speculates: a rung of its ladder, and the rows one step may verify."""

    rung: Rung
    rows: Count


class Decision(_Message):
    """Why a replica's depth changed, with all that the policy saw, so that it can be replayed."""

    at_ms: Millis
    replica_id: ReplicaId
    before: Annotated[Depth, Field(alias="from")]
    after: Annotated[Depth, Field(alias="to")]
    reason: Annotated[str, Field(min_length=1)]
    inputs: Mapping[str, JsonValue]


def _require_unique(name: str, keys: list[int] | list[str]) -> None:
    if len(set(keys)) != len(keys):
        raise ValueError(f"{name} must not list the same one twice")
