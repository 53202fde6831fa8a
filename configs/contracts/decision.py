"""`Decision`, from the controller into the decision log."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, JsonValue

from sparktier.configs.contracts.message import Count, Message, Millis, Part, ReplicaId, RungNumber


class Depth(Part):
    """How deep a replica speculates: a rung of its ladder, and the rows one step may verify."""

    rung: RungNumber
    rows: Count


class Decision(Message):
    """Why a replica's depth changed, with all that the policy saw, so that it can be replayed."""

    at_ms: Millis
    replica_id: ReplicaId
    before: Annotated[Depth, Field(alias="from")]
    after: Annotated[Depth, Field(alias="to")]
    reason: Annotated[str, Field(min_length=1)]
    inputs: Mapping[str, JsonValue]
