"""What users got of late, by tier: values of requests that ended, how many arrive, and how many promises were kept.

Counts what it is told; reads no clock.
"""

from collections import Counter, deque
from collections.abc import Iterable

WINDOW_S = 30.0
_MOST = 16_384
# Over fewer tokens than this a speed says little, so the promise of one is not judged.
LEAST_JUDGED_TOKENS = 32


class RecentValues:
    """Values that requests had when they ended, each kept for `WINDOW_S`."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, int, float]] = deque(maxlen=_MOST)

    def add(self, at_s: float, *, tier: int, value: float) -> None:
        """Add the value of a request of `tier`."""
        self._values.append((at_s, tier, value))

    def by_tier(self, now_s: float, running: Iterable[tuple[int, float]] = ()) -> dict[int, list[float]]:
        """Return the recent values, and those of requests that still run, given as (tier, value)."""
        found: dict[int, list[float]] = {}
        recent = ((tier, value) for at_s, tier, value in self._values if now_s - at_s <= WINDOW_S)
        for tier, value in (*recent, *running):
            found.setdefault(tier, []).append(value)
        return found


class Arrivals:
    """How many requests a second arrive. Each is told of at its first token, with the time at which it had come."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._arrived = RecentValues()

    def add(self, arrived_s: float, *, tier: int) -> None:
        """Count a request of `tier` that arrived at `arrived_s`."""
        self._arrived.add(arrived_s, tier=tier, value=1.0)

    def a_second(self, now_s: float, waiting: Iterable[tuple[int, float]]) -> dict[int, float]:
        """Return the rate by tier over the last `WINDOW_S`; `waiting` have no token yet: (tier, arrived_s)."""
        counts = Counter({tier: len(values) for tier, values in self._arrived.by_tier(now_s).items()})
        counts.update(tier for tier, arrived_s in waiting if now_s - arrived_s <= WINDOW_S)
        over_s = min(WINDOW_S, now_s - self._started_s)
        return {tier: count / over_s for tier, count in counts.items()} if over_s > 0 else {}


class KeptPromises:
    """By tier, how many requests met the promise they were admitted with, and how many were judged."""

    def __init__(self) -> None:
        self.met: dict[int, tuple[int, int]] = {}

    def ended(self, *, tier: int, promise_tok_s: float, tokens: int, lasted_s: float) -> None:
        """Judge a request that got `tokens`, the last of them `lasted_s` after the first, unless it is best effort."""
        if promise_tok_s <= 0 or tokens < LEAST_JUDGED_TOKENS:
            return
        met, judged = self.met.get(tier, (0, 0))
        self.met[tier] = (met + ((tokens - 1) >= promise_tok_s * lasted_s), judged + 1)
