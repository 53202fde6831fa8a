"""The requests of one tier that wait at a gateway: in turn by tenant, each turn worth the same tokens.

Deficit round robin (Shreedhar and Varghese, 1995). Within a tenant it is first come, first served.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

QUANTUM_TOKENS = 1024


@dataclass(eq=False)
class Waiting:
    """A request. `tier` is the one that will serve it, `asked` the one it came for; times are in seconds.

    `tokens` are those expected of it, `prefixes` hashes of its prompt's beginnings, the longest first, and `avoid`
    numbers of replicas that it has failed at. `granted_s` is when it was last let through.
    """

    asked: int
    tenant: str
    users: int
    tokens: int
    arrived_s: float
    tier: int = -1
    deadline_s: float = float("inf")
    prefixes: tuple[int, ...] = ()
    avoid: set[int] = field(default_factory=set)
    granted_s: float | None = None

    def __post_init__(self) -> None:
        if self.tier < 0:
            self.tier = self.asked


class TierQueue:
    """The queue of one tier."""

    def __init__(self) -> None:
        self.users = 0
        self._tenants: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self._deficit_tokens: dict[str, int] = {}

    def push(self, request: Waiting) -> None:
        """Put a request behind those of its tenant."""
        self._tenants.setdefault(request.tenant, deque()).append(request)
        self._deficit_tokens.setdefault(request.tenant, 0)
        self.users += request.users

    def put_back(self, request: Waiting) -> None:
        """Put a request first that was taken and found no room after all; its tenant has not had it."""
        self._tenants.setdefault(request.tenant, deque()).appendleft(request)
        self._tenants.move_to_end(request.tenant, last=False)
        self._deficit_tokens[request.tenant] = self._deficit_tokens.get(request.tenant, 0) + request.tokens
        self.users += request.users

    def first(self) -> Waiting | None:
        """Return whose turn it is; the same until it is taken or leaves."""
        while self._tenants:
            tenant, requests = next(iter(self._tenants.items()))
            if requests[0].tokens <= self._deficit_tokens[tenant] or len(self._tenants) == 1:
                return requests[0]
            self._deficit_tokens[tenant] += QUANTUM_TOKENS
            self._tenants.move_to_end(tenant)
        return None

    def take(self, request: Waiting) -> None:
        """Take out the one whose turn it is, at its tenant's cost."""
        tokens = max(0, self._deficit_tokens[request.tenant] - request.tokens)
        self._deficit_tokens[request.tenant] = tokens
        self.leave(request)

    def leave(self, request: Waiting) -> bool:
        """Take out a request that waits; False if it doesn't."""
        requests = self._tenants.get(request.tenant)
        if requests is None or request not in requests:
            return False
        requests.remove(request)
        self.users -= request.users
        if not requests:
            del self._tenants[request.tenant], self._deficit_tokens[request.tenant]
        return True

    def late(self, now_s: float) -> list[Waiting]:
        """Return those whose time is over."""
        return [request for each in self._tenants.values() for request in each if request.deadline_s <= now_s]

    @property
    def next_deadline_s(self) -> float:
        """When the first of them is late."""
        return min((request.deadline_s for each in self._tenants.values() for request in each), default=float("inf"))
