"""What speculation yields and costs on one rank: step time by rung, acceptance by position and tier, rows verified.

Counts what it is told; reads no clock and no engine. Windows are moving averages, so that old traffic fades.
"""

from dataclasses import dataclass, field

_STEP_WEIGHT = 0.1
# Counts are halved when a position has this many, so that the last few thousand drafts weigh most.
_WINDOW_DRAFTS = 4096.0


@dataclass
class Acceptance:
    """Drafts verified and accepted at each position of a block, 0 being the first drafted token."""

    verified: list[float]
    accepted: list[float]

    def add(self, *, depth: int, accepted: int) -> None:
        """Count one request's step: drafts verified down to `depth`, and `accepted` of them that stood in a row."""
        for position in range(depth):
            # Position k is only put to the test when all before it stood.
            if position > accepted:
                break
            self.verified[position] += 1
            self.accepted[position] += position < accepted
            if self.verified[position] >= _WINDOW_DRAFTS:
                self.verified[position] /= 2
                self.accepted[position] /= 2

    def fractions(self) -> list[float]:
        """Acceptance of each position given that those before it stood; positions never reached are left out."""
        pairs = zip(self.accepted, self.verified, strict=True)
        return [accepted / verified for accepted, verified in pairs if verified > 0]


@dataclass
class Figures:
    """Totals since the start, and moving averages. `step_ms` is by rung, prefill steps apart."""

    block_tokens: int
    steps: int = 0
    tokens: int = 0
    rows: int = 0
    step_ms: dict[int, float] = field(default_factory=dict)
    by_tier: dict[int, Acceptance] = field(default_factory=dict)

    def step(
        self,
        *,
        rung: int,
        took_ms: float,
        tiers: list[int],
        rows: list[int],
        depths: list[int],
        accepted: list[int],
    ) -> None:
        """Count one decode step; the lists have an entry for each request. `depths`: of the deepest drafted token."""
        before = self.step_ms.get(rung)
        self.step_ms[rung] = took_ms if before is None else before + _STEP_WEIGHT * (took_ms - before)
        self.steps += 1
        self.rows += sum(rows)
        self.tokens += sum(accepted) + len(accepted)
        for tier, depth, stood in zip(tiers, depths, accepted, strict=True):
            self._of(tier).add(depth=depth, accepted=stood)

    def _of(self, tier: int) -> Acceptance:
        if tier not in self.by_tier:
            self.by_tier[tier] = Acceptance([0.0] * self.block_tokens, [0.0] * self.block_tokens)
        return self.by_tier[tier]
