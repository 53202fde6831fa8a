"""`LatchOrder`, from an operator to a replica: switch speculation off whatever plans say, or let plans decide again."""

from typing import Annotated

from pydantic import Field

from sparktier.configs.contracts.message import Message


class LatchOrder(Message):
    """`latched` holds rung 0 until an order without it. `actor` and `reason` go into the replica's log."""

    latched: bool
    actor: Annotated[str, Field(min_length=1, max_length=100)]
    reason: Annotated[str, Field(max_length=500)] = ""
