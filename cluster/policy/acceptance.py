"""From what was accepted of a tier's drafts to the survivals that the planner plans by. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np

from sparktier.cluster.arrays import Floats
from sparktier.cluster.feasibility import TierText

USUAL_ACCEPT_FRAC = 0.6
"""What each drafted position of a tier is taken for of which nothing is known."""
HARD_TOKENS_FRAC = 0.8
_LEAST_HARD_FRAC = 0.3
_NODE_FALL, _ONE_CHILD_FRAC = 0.8, 0.8
_GRAIN = 0.02
_BISECTIONS = 20


def rounded(accept: Mapping[int, Sequence[float]]) -> tuple[tuple[int, tuple[float, ...]], ...]:
    """Return acceptance in steps of 0.02, so that replicas that differ by less share their answers."""
    return tuple(
        (tier, tuple(round(_GRAIN * round(float(chance) / _GRAIN), 2) for chance in chances))
        for tier, chances in sorted(accept.items())
        if len(chances)
    )


def survival_of(accept: Sequence[float], positions: int) -> Floats:
    """Return the survival [positions] of each drafted position; beyond those known the last acceptance goes on."""
    known = list(accept[:positions])
    chances = np.array(known + known[-1:] * (positions - len(known)))
    survival: Floats = np.cumprod(np.clip(chances, 0.0, 1.0))
    return survival


def chain_text(accept: Sequence[float], positions: int, hard_frac: float | None) -> TierText:
    """Return the text of a tier on a chain. `hard_frac`: tokens a step of its 5th percentile user over the median's."""
    survival = survival_of(accept, positions)
    return TierText(survival, _harder(survival, hard_frac))


def tree_text(accept: Sequence[float], positions: int, nodes: int, hard_frac: float | None) -> TierText:
    """Return the text of a tier on a tree of `nodes`.

    Signals tell of depths alone, so its nodes are taken to share what all depths yield, each a little less likely than
    the one before it.
    """
    text = chain_text(accept, positions, hard_frac)
    falling = _NODE_FALL ** np.arange(max(1, nodes))
    shares = falling / falling.sum()
    return TierText(*(np.minimum(of.sum() * shares, 1.0) for of in (text.survival, text.hard_survival)))


def as_chain(accept: Sequence[float]) -> tuple[float, ...]:
    """Return what a chain is taken for of which a tree's acceptance alone is known: one child is less than several."""
    return tuple(_ONE_CHILD_FRAC * chance for chance in accept)


def no_drafts() -> TierText:
    """Return the text of a tier on a rung that drafts nothing: one node that is never verified."""
    return TierText(np.zeros(1), np.zeros(1))


def forgiven(accept: Mapping[int, Sequence[float]], present: Mapping[int, int]) -> dict[int, tuple[float, ...]]:
    """Return acceptance by tier, that of tiers without users at least the usual one.

    A tier that hard text has shut out would never be seen again: its next user shows what its text is like by then.
    """
    return {
        tier: tuple(chances) if present.get(tier) else tuple(max(USUAL_ACCEPT_FRAC, chance) for chance in chances)
        for tier, chances in accept.items()
    }


def _harder(survival: Floats, hard_frac: float | None) -> Floats:
    """Survivals that fall by one more factor at each position, so that a step yields `hard_frac` of the tokens."""
    frac = min(1.0, max(_LEAST_HARD_FRAC, HARD_TOKENS_FRAC if hard_frac is None else hard_frac))
    wanted = max(0.0, frac * (1.0 + float(survival.sum())) - 1.0)
    powers = np.arange(1, len(survival) + 1)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if float((survival * middle**powers).sum()) > wanted else (middle, high)
    harder: Floats = survival * low**powers
    return harder
