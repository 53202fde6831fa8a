"""`Decision`, from the controller into the decision log."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, JsonValue

from sparktier.configs.contracts.message import Count, Message, Millis, Part, ReplicaId, RungNumber, RunState
from sparktier.configs.settings.tiers import TierId


class Depth(Part):
    """What a plan says of one replica: a rung of its ladder, rows that one step may verify, its state, users by tier.

    A cap of None bounds nothing.
    """

    rung: RungNumber
    rows: Count
    state: RunState = "serving"
    caps: Mapping[TierId, Count | None] = {}


class Decision(Message):
    """Why what a plan says of a replica changed, with all that the policy saw, so that it can be replayed."""

    at_ms: Millis
    replica_id: ReplicaId
    before: Annotated[Depth, Field(alias="from")]
    after: Annotated[Depth, Field(alias="to")]
    reason: Annotated[str, Field(min_length=1)]
    inputs: Mapping[str, JsonValue]
