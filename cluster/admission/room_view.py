"""What a gateway knows of one replica's room: its last message, less what the gateway has sent there since.

Several gateways send at the same time, so this is a guess, and the replica refuses where it was wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

STALE_S = 3.0
"""Messages come once a second; after so long without one the last caps are what is left to go by."""


@dataclass
class RoomView:
    """`room` is None until a replica has told any; then nothing is bounded. `own` are this gateway's users there."""

    room: dict[int, int] | None = None
    caps: Mapping[int, int] = field(default_factory=dict)
    own: dict[int, int] = field(default_factory=dict)
    seq: int = -1
    heard_s: float = 0.0

    def heard(self, room: Mapping[int, int], caps: Mapping[int, int], *, seq: int, now_s: float) -> None:
        """Take a message, unless a later one has come."""
        if seq >= self.seq:
            self.room, self.caps, self.seq, self.heard_s = dict(room), dict(caps), seq, now_s

    def starts_over(self) -> None:
        """Take any message next: the replica may be another process, which counts from 0."""
        self.seq = -1

    def free(self, tier: int, now_s: float) -> int | None:
        """Return how many more users of `tier` it should take; None is no bound."""
        if self.room is None:
            return None
        if now_s - self.heard_s <= STALE_S:
            return self.room.get(tier)
        cap = self.caps.get(tier)
        return None if cap is None else max(0, cap - self.own.get(tier, 0))

    def sent(self, tier: int, users: int) -> None:
        """Count users that are on their way there."""
        self.own[tier] = self.own.get(tier, 0) + users
        if self.room is not None and tier in self.room:
            self.room[tier] = max(0, self.room[tier] - users)

    def left(self, tier: int, users: int) -> None:
        """Count users that are there no more. Its next message tells of their room."""
        self.own[tier] -= users

    def full(self, tier: int, now_s: float) -> None:
        """Note that it has refused `tier`, until its next message."""
        if self.room is None:
            self.room, self.heard_s = {}, now_s
        self.room[tier] = 0
