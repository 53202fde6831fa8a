"""What speculation yields and costs on one rank: acceptance by position and tier, rows verified, time of each part.

Totals only grow; windows are counts that are halved when full, so that old traffic fades.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
from numpy.typing import NDArray

Counts = Sequence[int]
"""An entry for each request of a step."""
# The last few thousand weigh most.
_WINDOW = 4096.0


@dataclass
class TierStats:
    """One tier's requests. A round is one request's part of a step.

    Totals: `rounds`, `rows` verified (the anchor's included) and `tokens` that came of them. Windows: `recent_rounds`
    and `recent_tokens`; `predicted_rounds`, which the planner planned, and the tokens it predicted of them; `verified`
    and `accepted` drafts at each position of a block, 0 being the first drafted.
    """

    verified: list[float]
    accepted: list[float]
    rounds: int = 0
    rows: int = 0
    tokens: int = 0
    recent_rounds: float = 0.0
    recent_tokens: float = 0.0
    predicted_rounds: float = 0.0
    predicted_tokens: float = 0.0

    def predict(self, tokens: float) -> None:
        """Count a round that the planner expected to yield `tokens`."""
        self.predicted_rounds += 1
        self.predicted_tokens += tokens
        if self.predicted_rounds >= _WINDOW:
            self.predicted_rounds /= 2
            self.predicted_tokens /= 2

    def add(self, *, rows: Counts, depths: Counts, accepted: Counts) -> None:
        """Count rounds, an entry each: `rows` verified to `depths` drafts below the anchor; `accepted` of them kept."""
        tokens = sum(accepted) + len(accepted)
        self.rounds += len(rows)
        self.rows += sum(rows)
        self.tokens += tokens
        self.recent_rounds += len(rows)
        self.recent_tokens += tokens
        if self.recent_rounds >= _WINDOW:
            self.recent_rounds /= 2
            self.recent_tokens /= 2
        if not any(depths):
            return
        lengths = np.asarray(accepted)
        # A position is tested only when all before it were accepted.
        tested = _longer_than(np.minimum(depths, lengths + 1), len(self.verified))
        passed = _longer_than(lengths, len(self.verified))
        for position, (tests, passes) in enumerate(zip(tested, passed, strict=True)):
            self.verified[position] += tests
            self.accepted[position] += passes
            if self.verified[position] >= _WINDOW:
                self.verified[position] /= 2
                self.accepted[position] /= 2


@dataclass
class SpeculationStats:
    """All tiers of one rank. `phase_ms` is the total time of each part of its steps, `rung` that of the last one.

    `padding_rows` of its passes belonged to no request: a pass is filled up to a graph's rows, or to another group's.
    """

    block_tokens: int
    rung: int = 0
    padding_rows: int = 0
    phase_ms: dict[str, float] = field(default_factory=dict)
    by_tier: dict[int, TierStats] = field(default_factory=dict)

    def step(
        self,
        *,
        rung: int,
        phase_ms: Mapping[str, float],
        tiers: list[int],
        rows: list[int],
        depths: list[int],
        accepted: list[int],
        expected: Sequence[float] | None = None,
        padding_rows: int = 0,
    ) -> None:
        """Count one decode step, given how long each part took; the lists have an entry for each request.

        `expected`: drafted tokens that the planner expects to be accepted, where it plans.
        """
        self.rung = rung
        self.padding_rows += padding_rows
        for name, took_ms in phase_ms.items():
            self.phase_ms[name] = self.phase_ms.get(name, 0.0) + took_ms
        found = set(tiers)
        for tier in found:
            # Nearly always all requests are of one tier.
            columns = (rows, depths, accepted) if len(found) == 1 else _of_tier(tier, tiers, rows, depths, accepted)
            self.stats_for(tier).add(rows=columns[0], depths=columns[1], accepted=columns[2])
        if expected is not None:
            for tier, tokens in zip(tiers, expected, strict=True):
                self.stats_for(tier).predict(1.0 + tokens)

    def first_drafts(self) -> tuple[float, float]:
        """Return how many first drafts of a block were verified lately, and how many of them accepted."""
        tiers = [tier for tier in self.by_tier.values() if tier.verified]
        return sum(tier.verified[0] for tier in tiers), sum(tier.accepted[0] for tier in tiers)

    def stats_for(self, tier: int) -> TierStats:
        """Return the statistics of `tier`, new ones where nothing of it was counted yet."""
        if tier not in self.by_tier:
            self.by_tier[tier] = TierStats([0.0] * self.block_tokens, [0.0] * self.block_tokens)
        return self.by_tier[tier]


def _of_tier(tier: int, tiers: list[int], *columns: list[int]) -> list[list[int]]:
    is_tier = np.asarray(tiers) == tier
    return [list(compress(column, is_tier)) for column in columns]


def _longer_than(lengths: NDArray[np.int64], positions: int) -> list[int]:
    """How many of `lengths` exceed 0, 1, ... `positions` - 1."""
    at = np.bincount(np.minimum(lengths, positions), minlength=positions + 1)
    return [int(count) for count in at[::-1].cumsum()[::-1][1:]]


def acceptance(stats: list[TierStats]) -> list[float]:
    """Return the acceptance of each position reached, given that those before it were accepted."""
    verified = [sum(counts) for counts in zip(*(tier.verified for tier in stats), strict=True)]
    accepted = [sum(counts) for counts in zip(*(tier.accepted for tier in stats), strict=True)]
    return [passed / tested for passed, tested in zip(accepted, verified, strict=True) if tested > 0]


def predicted_tokens(stats: list[TierStats]) -> float | None:
    """Return the tokens of a round as the planner predicted them of late; None where it planned none."""
    rounds = sum(tier.predicted_rounds for tier in stats)
    return sum(tier.predicted_tokens for tier in stats) / rounds if rounds else None
