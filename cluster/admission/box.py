"""Users of each tier that one replica has, and how many more it takes: the caps of its plan are kept here.

A tier that yields may use, beyond its own cap, room that other tiers leave idle. It never keeps a user of theirs out:
that user is taken, and the engine puts a request of the yielding tier back into its queue.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Caps = Mapping[int, int | None]
"""Most users by tier. None bounds nothing; a tier that is not listed is the default one."""


@dataclass
class Box:
    """The users under `caps`. While not `open` none are taken; those that are there go on."""

    caps: Caps
    default_tier: int
    yielding: Collection[int] = ()
    open: bool = True
    users: dict[int, int] = field(default_factory=dict)

    def put(self, caps: Caps, *, default_tier: int, yielding: Collection[int] = (), open: bool = True) -> None:
        """Replace all that a plan says. Users who are above a new cap stay."""
        self.caps, self.default_tier, self.yielding, self.open = caps, default_tier, yielding, open

    def take(self, tier: int, users: int) -> int | None:
        """Count `users` more of `tier` and return the tier that they are counted under; None if there is no room."""
        served = tier if tier in self.caps else self.default_tier
        free = self.free(served)
        if free is not None and users > free:
            return None
        self.users[served] = self.users.get(served, 0) + users
        return served

    def release(self, served: int, users: int) -> None:
        """Let users go that `take` counted under `served`."""
        self.users[served] -= users
        if not self.users[served]:
            del self.users[served]

    def free(self, tier: int) -> int | None:
        """Return how many more users of `tier` are taken; None is no bound."""
        if not self.open:
            return 0
        cap = self.caps.get(tier)
        if cap is None:
            return None
        if tier in self.yielding and (seats := self.seats) is not None:
            return max(0, seats - sum(self.users.values()))
        return max(0, cap - self.users.get(tier, 0))

    @property
    def seats(self) -> int | None:
        """Users of all tiers together that the caps allow; None where a tier has no bound."""
        caps = [cap for cap in self.caps.values() if cap is not None]
        return sum(caps) if len(caps) == len(self.caps) else None

    @property
    def room(self) -> dict[int, int]:
        """How many more users of each bounded tier are taken."""
        free = {tier: self.free(tier) for tier in self.caps}
        return {tier: users for tier, users in free.items() if users is not None}

    @property
    def bounds(self) -> dict[int, int]:
        """The caps of the tiers that have one."""
        return {tier: cap for tier, cap in self.caps.items() if cap is not None}
