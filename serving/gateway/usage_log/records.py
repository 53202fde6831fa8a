"""Records of use and their lines: what a request is, how far it came, and what it had. Pure."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

State = Literal["open", "ended", "incomplete", "complete"]
# A request has the record whose state comes last here.
STATES: tuple[State, ...] = ("open", "ended", "incomplete", "complete")
UNSETTLED = ("open", "ended")


@dataclass(frozen=True)
class UsageRecord:
    """One request; each of its records says all of it.

    `open`: it is about to be sent to a replica. `ended`: it broke off after the tokens here had been delivered, and the
    engine's count is awaited. `complete`: tokens are the engine's count. `incomplete`: the engine died, or its count is
    lost, and tokens are those delivered.
    """

    state: State
    at_ms: int
    started_at_ms: int
    engine_id: str
    request_id: str
    tenant: str
    tier: str
    kind: str
    users: int
    replica: int
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is awaited."""
        return self.state not in UNSETTLED

    def now(
        self, state: State, at_ms: int, *, prompt_tokens: int | None = None, completion_tokens: int | None = None
    ) -> "UsageRecord":
        """Return the same request in `state`; tokens that are None stay as they are."""
        prompt = self.prompt_tokens if prompt_tokens is None else prompt_tokens
        completion = self.completion_tokens if completion_tokens is None else completion_tokens
        return dataclasses.replace(self, state=state, at_ms=at_ms, prompt_tokens=prompt, completion_tokens=completion)


_RECORD = TypeAdapter(UsageRecord)


def line_of(record: UsageRecord) -> bytes:
    """Return the line of `record`."""
    return _RECORD.dump_json(record) + b"\n"


def records_in(lines: Iterable[bytes]) -> list[UsageRecord]:
    """Return the records of `lines`; what a crash or a full disk has left of a line is passed over."""
    found = []
    for line in lines:
        try:
            found.append(_RECORD.validate_json(line))
        except ValidationError:
            continue
    return found


def latest(records: Iterable[UsageRecord]) -> Mapping[str, UsageRecord]:
    """Return the record that holds for each request, by the engine's id. Of one state the last one holds."""
    found: dict[str, UsageRecord] = {}
    for record in records:
        before = found.get(record.engine_id)
        if before is None or STATES.index(record.state) >= STATES.index(before.state):
            found[record.engine_id] = record
    return found
