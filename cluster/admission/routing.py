"""Which replica a request goes to: one with room, of these one that has its prompt's beginning cached, else the least
loaded.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

PREFIX_CHARACTERS = (16_384, 4_096, 1_024, 256)
"""A prompt is known by its beginnings of so many characters; what is shorter is not worth a detour."""
SLACK_USERS = 4
"""A replica is preferred for its cache while it has at most so many users more than the least loaded."""
_REMEMBERED = 50_000


@dataclass(frozen=True)
class Candidate:
    """A replica that serves: its number, how many more users it takes (None: no bound), and the users that it has from
    here. One that is not `healthy` gets requests only where no other serves.
    """

    number: int
    free: int | None
    users: int
    healthy: bool = True


def prefixes_of(secret: str, prompt: str) -> tuple[int, ...]:
    """Return what a prompt's beginnings are remembered by, the longest first; `secret` keeps tenants apart."""
    return tuple(hash((secret, prompt[:length])) for length in PREFIX_CHARACTERS if len(prompt) >= length)


class PrefixMemory:
    """Which replica has last had a prompt's beginning; the oldest are forgotten."""

    def __init__(self) -> None:
        self._replicas: OrderedDict[int, int] = OrderedDict()

    def sent(self, prefixes: Sequence[int], number: int) -> None:
        """Note that replica `number` has these beginnings from now on."""
        for prefix in prefixes:
            self._replicas[prefix] = number
            self._replicas.move_to_end(prefix)
        while len(self._replicas) > _REMEMBERED:
            self._replicas.popitem(last=False)

    def holder(self, prefixes: Sequence[int]) -> int | None:
        """Return the replica that has the longest of these beginnings."""
        return next((self._replicas[prefix] for prefix in prefixes if prefix in self._replicas), None)


def choose(
    candidates: Collection[Candidate], *, users: int, avoid: Collection[int] = (), holder: int | None = None
) -> Candidate | None:
    """Return the replica for a request of `users`, or None if none has room for it now."""
    # Where all others have gone meanwhile, one that failed may have come back.
    usable = [each for each in candidates if each.number not in avoid] or list(candidates)
    # A sick replica is not waited for while another serves, even a full one.
    usable = [each for each in usable if each.healthy] or usable
    roomy = [each for each in usable if each.free is None or each.free >= users]
    if not roomy:
        return None
    least = min(roomy, key=lambda each: (each.users, each.number))
    cached = next((each for each in roomy if each.number == holder), None)
    return cached if cached is not None and cached.users <= least.users + SLACK_USERS else least
