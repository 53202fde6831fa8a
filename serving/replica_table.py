"""Which replicas there are and what state each is in, as the front and the supervisor both see it.

Knows nothing of processes or HTTP.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """What a replica is doing."""

    STARTING = "starting"
    SERVING = "serving"
    DOWN = "down"


@dataclass
class Replica:
    """One replica; `in_flight` counts requests the front has sent it and not finished."""

    number: int
    url: str
    state: State = State.STARTING
    in_flight: int = 0
    restarts: int = 0
    ranks: list[dict[str, object]] = field(default_factory=list)


@dataclass(frozen=True)
class ReplicaTable:
    """All replicas of one deployment."""

    replicas: tuple[Replica, ...]

    def pick(self) -> Replica | None:
        """Return the serving replica with the fewest requests in flight (ties: the lowest number), or None."""
        serving = [replica for replica in self.replicas if replica.state is State.SERVING]
        return min(serving, key=lambda replica: (replica.in_flight, replica.number), default=None)

    def count(self, state: State) -> int:
        """Return how many replicas are in `state`."""
        return sum(replica.state is state for replica in self.replicas)
