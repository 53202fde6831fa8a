"""Which replicas there are, what each is doing, and which one the next request goes to."""

from collections.abc import Collection
from dataclasses import dataclass, field

from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.gateway.replica_life import ReplicaLife, State


@dataclass
class Replica:
    """One replica: `url` while it has a process, `limits` once it has served, requests sent to it and not finished.

    `failed_starts` counts processes that ended before any replica was ready.
    """

    number: int
    url: str = ""
    life: ReplicaLife = field(default_factory=ReplicaLife)
    in_flight: int = 0
    limits: EngineLimits | None = None
    failed_starts: int = 0

    @property
    def state(self) -> State:
        """What it is doing."""
        return self.life.state


class RequestInFlight:
    """One request at a replica, which counts it until `close`."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        replica.in_flight += 1

    def move_to(self, replica: Replica) -> None:
        """Leave this replica for another."""
        self.close()
        self.replica = replica
        replica.in_flight += 1

    def close(self) -> None:
        """Leave the replica."""
        self.replica.in_flight -= 1


@dataclass
class ReplicaTable:
    """All replicas of one deployment, which may change while it runs."""

    replicas: tuple[Replica, ...]

    @property
    def ever_served(self) -> bool:
        """Whether any replica has been ready once."""
        return any(replica.limits is not None for replica in self.replicas)

    def never_started(self, attempts: int) -> bool:
        """Whether none has ever been ready, and each has failed to start `attempts` times."""
        return not self.ever_served and all(replica.failed_starts >= attempts for replica in self.replicas)

    def pick(self, *, besides: Collection[Replica] = ()) -> Replica | None:
        """Return the serving replica with the fewest requests in flight (ties: the lowest number), or None.

        Those in `besides` are left out.
        """
        numbers = {replica.number for replica in besides}
        serving = [
            replica for replica in self.replicas if replica.state.takes_requests and replica.number not in numbers
        ]
        return min(serving, key=lambda replica: (replica.in_flight, replica.number), default=None)

    def count(self, state: State) -> int:
        """Return how many replicas are in `state`."""
        return sum(replica.state is state for replica in self.replicas)
