"""`ReplicaOrder`, from an operator to the controller: what it is to want of one replica, whatever its policy says."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparktier.configs.contracts.message import Message, ReplicaId, RungNumber


class ReplicaOrder(Message):
    """`drain` lets a replica finish and take nothing new, `hold` keeps it on `rung`, `resume` ends both."""

    replica_id: ReplicaId
    action: Literal["drain", "hold", "resume"]
    rung: RungNumber | None = None
    actor: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.action == "hold") != (self.rung is not None):
            raise ValueError("rung must be given with hold, and only there")
        return self
