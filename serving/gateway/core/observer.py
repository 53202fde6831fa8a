"""What the core shows of each request for spans, metrics and logs: its phases and its outcome, never its chunks.

Calls return at once and don't raise.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sparktier.serving.gateway.core.ask import Ask
from sparktier.serving.gateway.engine_times import EngineTimes


class Phase(StrEnum):
    """How far a request is."""

    ADMITTED = "admitted"
    """Its tier is known and its tenant's limits had room."""
    SENT = "sent"
    """A replica has taken the connection and the request; once for each replica that was tried."""
    FIRST_TOKEN = "first_token"
    """The first event of a stream has come from the replica, or the whole answer."""


@dataclass(frozen=True)
class Outcome:
    """How a request ended. `status` is HTTP's, 499 where the client hung up; `code` is the refusal's, "" for none.

    `asked_tier` is the tier that was asked for, where `tier` served it instead. `waited_ms` is how long it waited for
    room, and `predicted_wait_ms` what was expected; None where it did not wait, or nothing was expected.
    """

    status: int
    code: str = ""
    tier: str = ""
    replica: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    engine_id: str | None = None
    times: EngineTimes | None = None
    asked_tier: str | None = None
    waited_ms: float | None = None
    predicted_wait_ms: float | None = None


class Watch(Protocol):
    """Sees one request through."""

    @property
    def traceparent(self) -> str | None:
        """What the replica's own spans are to continue, as in the header `traceparent`."""
        ...

    def reached(self, phase: Phase) -> None:
        """Note that the request has reached `phase`."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """Note how it ended; nothing follows."""
        ...


class Observer(Protocol):
    """Watches all requests."""

    def watch(self, ask: Ask) -> Watch:
        """Return the watch of a request that begins now."""
        ...


@dataclass(frozen=True)
class _Unwatched:
    traceparent: str | None

    def reached(self, phase: Phase) -> None:
        """Note nothing."""

    def ended(self, outcome: Outcome) -> None:
        """Note nothing."""


class Unobserved:
    """Sees nothing, and passes the client's own `traceparent` on."""

    def watch(self, ask: Ask) -> Watch:
        """Return a watch that notes nothing."""
        return _Unwatched(ask.traceparent)
