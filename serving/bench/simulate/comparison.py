"""What `sparktier` is worth beside another policy on the same requests: goodput by blocks of 10 s, resampled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparktier.cluster.arrays import Floats

OURS = "sparktier"
_RESAMPLED = 2000
_LOW, _HIGH = 0.025, 0.975
Rows = Sequence[Mapping[str, Any]]


def compared(rows: Rows) -> list[dict[str, Any]]:
    """Return, by load and rival, the ratio of goodput of promised tiers with its interval, and of all tokens.

    Blocks of the same seed and time are paired, as both policies were offered the same requests in them.
    """
    found = []
    for load in dict.fromkeys(row["load"] for row in rows):
        own = [row for row in rows if row["load"] == load]
        names = list(dict.fromkeys(row["policy"] for row in own))
        if OURS not in names:
            continue
        ours = _blocks(own, OURS)
        for name in names:
            if name == OURS:
                continue
            theirs = _blocks(own, name)
            low, high = _interval(ours, theirs)
            found.append(
                {
                    "load": load,
                    "rival": name,
                    "goodput_ratio": _ratio(ours.sum(), theirs.sum()),
                    "low": low,
                    "high": high,
                    "throughput_ratio": _ratio(_throughput(own, OURS), _throughput(own, name)),
                }
            )
    return found


def _blocks(rows: Rows, policy: str) -> Floats:
    """[blocks of all seeds] good tokens of promised tiers."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    by_seed = [
        np.sum([r["good_tokens_by_block"] for r in rows if r["policy"] == policy and r["seed"] == seed], axis=0)
        for seed in seeds
    ]
    blocks: Floats = np.concatenate(by_seed).astype(np.float64)
    return blocks


def _throughput(rows: Rows, policy: str) -> float:
    return float(sum(row["throughput_tok_s"] for row in rows if row["policy"] == policy))


def _interval(ours: Floats, theirs: Floats) -> tuple[float | None, float | None]:
    drawn = np.random.default_rng(0).integers(len(ours), size=(_RESAMPLED, len(ours)))
    below = theirs[drawn].sum(axis=1)
    if not below.all():
        return None, None
    ratios = ours[drawn].sum(axis=1) / below
    return round(float(np.quantile(ratios, _LOW)), 4), round(float(np.quantile(ratios, _HIGH)), 4)


def _ratio(one: float, other: float) -> float | None:
    return round(float(one / other), 4) if other else None
