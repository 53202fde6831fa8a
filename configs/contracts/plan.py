"""`Plan`, from the controller to replicas and gateways."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from sparktier.configs.contracts.message import (
    Count,
    Message,
    Millis,
    Part,
    Positive,
    ReplicaId,
    RungNumber,
    RunState,
    require_unique,
)
from sparktier.configs.settings.tiers import TierId


class TierPromise(Part):
    """A tier everywhere: its name, the speed promised to each user (None: best effort), its weight in each step.

    One that `yields` uses room that others leave idle, and is put back into the queue when they need it.
    """

    name: str
    promise_tok_s: Positive | None = None
    weight: Positive = 1.0
    yields: bool = False


class TierCaps(Part):
    """A tier's bounds on one replica: users at once, and drafted tokens of a request in a step. None is no bound."""

    cap_users: Count | None = None
    cap_tokens: Count | None = None


class ReplicaPlan(Part):
    """Where a replica is, whether it takes requests, what it drafts, and the most rows of a step (0: no bound)."""

    replica_id: ReplicaId
    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    state: RunState
    rung: RungNumber
    rows: Count
    tiers: Mapping[TierId, TierCaps]


class Plan(Message):
    """Who may use what. It replaces all of the plan before it; (epoch, version) rises with each.

    A replica counts `ttl_ms` on its own clock from the plan's arrival; None holds until the next plan. `default_tier`
    serves requests that name no tier, or one that is not listed.
    """

    epoch: Annotated[int, Field(ge=1)]
    version: Annotated[int, Field(ge=1)]
    issued_at_ms: Millis
    ttl_ms: Annotated[int, Field(ge=1)] | None
    default_tier: TierId
    tiers: Annotated[Mapping[TierId, TierPromise], Field(min_length=1)]
    replicas: Annotated[tuple[ReplicaPlan, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require_unique("replicas", [replica.replica_id for replica in self.replicas])
        require_unique("tiers", [tier.name for tier in self.tiers.values()])
        if self.default_tier not in self.tiers:
            raise ValueError(f"default_tier {self.default_tier} must be one of the tiers {sorted(self.tiers)}")
        for replica in self.replicas:
            if unknown := sorted(set(replica.tiers) - set(self.tiers)):
                raise ValueError(f"replica {replica.replica_id} has caps for tiers that are not listed: {unknown}")
        return self
