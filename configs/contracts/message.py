"""What all messages share: their schema, the types of their fields, and how one is read.

A receiver refuses a message of another schema in one sentence instead of misreading it.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparktier.configs.errors import ContractError

SCHEMA_VERSION: Literal[2] = 2
ReplicaId = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
RungNumber = Annotated[int, Field(ge=0, le=15)]
"""A step of the replica's ladder of depths. 0 is off; a higher one verifies more rows."""
RunState = Literal["serving", "draining", "off"]
"""What a plan wants of a replica: requests, none but those it has, or nothing."""
Millis = Annotated[int, Field(ge=0)]
"""Milliseconds: since 1970 in `*at_ms`, a duration elsewhere."""
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """A block of a message: frozen, strict, closed to unknown keys, its numbers finite."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
    )


class Message(Part):
    """A whole message, which says of what schema it is."""

    schema_version: Literal[2] = SCHEMA_VERSION


class Spread(Part):
    """The 5th percentile and the median over users."""

    p5: Rate
    p50: Rate

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.p5 > self.p50:
            raise ValueError("p5 must not exceed p50")
        return self


AnyMessage = TypeVar("AnyMessage", bound=Message)


def read_message(kind: type[AnyMessage], text: str | bytes) -> AnyMessage:
    """Return the message of `kind` that the JSON in `text` is.

    Raises:
        ContractError: it is of another schema, or breaks a rule of this one.
    """
    name = kind.__name__
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{name} must be JSON (found {error}). Send the message whole.") from None
    _require_schema(name, found)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ContractError(f"{name} must keep to schema {SCHEMA_VERSION}: {_reasons(error)}") from None


def require_unique(name: str, keys: Sequence[object]) -> None:
    """Raise ValueError when `keys`, of the entries of `name`, has one twice."""
    if len(set(keys)) != len(keys):
        raise ValueError(f"{name} must not list the same one twice")


def _require_schema(name: str, found: Any) -> None:
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise ContractError(
            f"{name}: schema_version must be {SCHEMA_VERSION} (found {version!r}). Run one version of sparktier in all"
            " parts of a deployment."
        )


def _reasons(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, found['loc'])) or 'message'}: {found['msg']}" for found in error.errors())
