"""How many replicas a traffic and its promises need: the smallest cluster that keeps them, and what binds it. Pure.

What a cluster of so many replicas attains is asked of a simulation that is passed in; each size is asked for once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Attained = Mapping[str, float]
"""By tier, the part of offered requests whose promise was kept; tiers without a promise: the part served."""
NONE = "none"
"""Of a cluster of one replica, which nothing smaller could replace."""


@dataclass
class Sizes:
    """What clusters attain, by their replicas. A size is good where every tier attains `attain_frac` or more."""

    attained_by: Callable[[int], Attained]
    attain_frac: float
    known: dict[int, Attained] = field(default_factory=dict)

    def attained(self, replicas: int) -> Attained:
        """Return what so many replicas attain."""
        if replicas not in self.known:
            self.known[replicas] = self.attained_by(replicas)
        return self.known[replicas]

    def good(self, replicas: int) -> bool:
        """Return whether so many replicas keep all promises as often as wanted."""
        return is_good(self.attained(replicas), self.attain_frac)


def is_good(attained: Attained, attain_frac: float) -> bool:
    """Return whether every tier attains so much."""
    return all(frac >= attain_frac for frac in attained.values())


def smallest(sizes: Sizes, *, most: int, guess: int = 1) -> int | None:
    """Return a size up to `most` that is good while one replica fewer is not; None where `most` is not good.

    Larger clusters are taken to attain no less; where luck makes one that does, another such size may be found.

    Args:
        sizes: what clusters attain.
        most: replicas at most.
        guess: where to begin.
    """
    bad, good = 0, min(max(1, guess), most)
    # 1. Up, by factors of two, until a size is good.
    while not sizes.good(good):
        if good == most:
            return None
        bad, good = good, min(2 * good, most)
    # 2. Between a bad size and a good one.
    while good - bad > 1:
        middle = (bad + good) // 2
        bad, good = (bad, middle) if sizes.good(middle) else (middle, good)
    return good


def binding(relaxed: Mapping[str, Callable[[], Attained]]) -> tuple[str, Mapping[str, float]]:
    """Return the constraint without which the smaller cluster would do, and what its worst tier attains without each.

    Args:
        relaxed: by constraint, what the smaller cluster attains without it. Where none suffices by itself, the one
            that helps most binds.
    """
    if not relaxed:
        return NONE, {}
    worst = {name: min(attained().values()) for name, attained in relaxed.items()}
    return max(worst, key=lambda name: worst[name]), worst


def cost_per_million(replicas: int, price_per_hour: float, tok_s: float) -> float | None:
    """Return what a million tokens cost at a price per replica and hour; None where there are no tokens."""
    return replicas * price_per_hour / 3600.0 / tok_s * 1e6 if tok_s > 0 else None
