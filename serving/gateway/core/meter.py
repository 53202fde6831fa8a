"""What the core tells of a request's use: one record before it is sent to a replica, one before its last byte leaves.

Neither method may raise: a request goes on whatever becomes of its records.
"""

from dataclasses import dataclass
from typing import Protocol

from sparktier.serving.gateway.core.ask import Kind


@dataclass(frozen=True)
class Started:
    """A request that is about to be sent to a replica.

    `engine_id` is unique and the engine's own id of the request; several users have ids that begin with it.
    """

    engine_id: str
    request_id: str
    tenant: str
    tier: str
    kind: Kind
    users: int
    replica: int
    url: str


@dataclass(frozen=True)
class Ended:
    """A request that is over. Tokens are those that were delivered; None where the engine has told none.

    `complete` says that the engine's answer was delivered whole, so that its counts are final.
    """

    engine_id: str
    prompt_tokens: int | None
    completion_tokens: int | None
    complete: bool


class Meter(Protocol):
    """Keeps the records of use. What it is told counts from the first step of the call, even if that is cancelled."""

    async def started(self, record: Started) -> None:
        """Return once `record` is kept. A request that moves to another replica starts again under the same id."""
        ...

    async def ended(self, record: Ended) -> None:
        """Return once `record` is kept. Exactly one follows, or none after a crash."""
        ...


class Unmetered:
    """Keeps no records."""

    async def started(self, record: Started) -> None:
        """Keep nothing."""

    async def ended(self, record: Ended) -> None:
        """Keep nothing."""
