"""Which replicas there are, what each is doing, and what a gateway has seen of its room and of its tokens."""

from dataclasses import dataclass, field

from sparktier.cluster.admission.progress import Progress
from sparktier.cluster.admission.room_view import RoomView
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
    room: RoomView = field(default_factory=RoomView)
    progress: Progress = field(default_factory=Progress)

    @property
    def users(self) -> int:
        """Users whom this gateway has sent there and who are not done."""
        return sum(self.room.own.values())

    @property
    def state(self) -> State:
        """What it is doing."""
        return self.life.state


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

    @property
    def serving(self) -> list[Replica]:
        """Those that take requests."""
        return [replica for replica in self.replicas if replica.state.takes_requests]

    def count(self, state: State) -> int:
        """Return how many replicas are in `state`."""
        return sum(replica.state is state for replica in self.replicas)
