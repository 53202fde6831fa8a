"""What each tier's drafts survived of late: stands in for requests whose own drafts aren't known yet."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sparktier.cluster.arrays import Floats

# Of a tier's mean survivals, what one step of it counts.
CURVE_GAIN = 0.1


@dataclass
class TierCurves:
    """Mean survivals of each tier's drafts on each rung, moving."""

    _curves: dict[tuple[int, int], Floats] = field(default_factory=dict)

    def of(self, tiers: Sequence[int], rung: int, *, nodes: int) -> Floats:
        """Return [requests, nodes] the curves of the requests' tiers; NaN where a tier has none yet."""
        own, curves = np.array(tiers, dtype=np.int64), np.full((len(tiers), nodes), np.nan)
        for tier in set(tiers):
            if (curve := self._curves.get((tier, rung))) is not None:
                curves[own == tier] = curve
        return curves

    def follow(self, tiers: Sequence[int], rung: int, survival: Floats) -> None:
        """Move each tier's curve towards the mean of its requests' `survival` [requests, nodes]."""
        own = np.array(tiers)
        for tier in set(tiers):
            seen = survival[own == tier]
            mean = np.add.reduce(seen, axis=0) / len(seen)
            before = self._curves.get((tier, rung), mean)
            self._curves[tier, rung] = before + CURVE_GAIN * (mean - before)
