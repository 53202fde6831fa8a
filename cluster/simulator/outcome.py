"""What users of each tier got, and whether one policy is worth more than another at the same throughput."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparktier.cluster.arrays import Floats
from sparktier.cluster.simulator.sim_engine import Ended
from sparktier.cluster.simulator.users import Served
from sparktier.cluster.traffic.attainment import LEAST_TOKENS

STRICT, LENIENT = 1, 0
TIER_NAMES = {STRICT: "strict", LENIENT: "lenient"}


class Point(NamedTuple):
    """What one policy gave on one seed."""

    throughput_tok_s: float
    attainment_frac: float


def mean_speed_tok_s(served: Served) -> float:
    """Return the mean speed of all counted answers: the promise at factor 1."""
    return float(np.mean([each.speed_tok_s for each in _long(served.ended)]))


def tier_rows(served: Served, *, promise_tok_s: float) -> list[dict[str, Any]]:
    """Return a report row for each tier; the strict one was promised `promise_tok_s`, the other nothing."""
    return [_tier_row(served, tier, promise_tok_s if tier == STRICT else None) for tier in (STRICT, LENIENT)]


def attainment_on_hull(points: Sequence[Point], throughput_tok_s: float) -> float:
    """Return the most attainment that a mixture of `points` has at this throughput or more.

    Below the slowest point it is that point's, above the fastest one the fastest one's.
    """
    best = 0.0
    for first in points:
        if first.throughput_tok_s >= throughput_tok_s:
            best = max(best, first.attainment_frac)
        for second in points:
            if first.throughput_tok_s < throughput_tok_s < second.throughput_tok_s:
                share = (throughput_tok_s - first.throughput_tok_s) / (second.throughput_tok_s - first.throughput_tok_s)
                mixed = first.attainment_frac + share * (second.attainment_frac - first.attainment_frac)
                best = max(best, mixed)
    fastest = max(points, key=lambda point: point.throughput_tok_s)
    return best if throughput_tok_s <= fastest.throughput_tok_s else fastest.attainment_frac


def _long(ended: Sequence[Ended]) -> list[Ended]:
    return [each for each in ended if each.request.answer.tokens >= LEAST_TOKENS]


def _tier_row(served: Served, tier: int, promise_tok_s: float | None) -> dict[str, Any]:
    own = [each for each in served.ended if each.request.tier == tier]
    counted = _long(own)
    speeds: Floats = np.array([each.speed_tok_s for each in counted] or [np.nan])
    waits: Floats = np.array([each.first_ms - each.submitted_ms for each in own] or [np.nan])
    kept = [each for each in counted if promise_tok_s is not None and each.speed_tok_s >= promise_tok_s]
    row: Mapping[str, Any] = {
        "tier": TIER_NAMES[tier],
        "promise_tok_s": None if promise_tok_s is None else round(promise_tok_s, 4),
        "requests": len(own),
        "attained_tok_s_p50": round(float(np.median(speeds)), 3),
        "attained_tok_s_p5": round(float(np.quantile(speeds, 0.05)), 3),
        "attainment_frac": None if promise_tok_s is None else round(len(kept) / len(counted), 5),
        "ttft_ms_p50": round(float(np.median(waits)), 2),
        "ttft_ms_p99": round(float(np.quantile(waits, 0.99)), 2),
        "goodput_tok_s": None
        if promise_tok_s is None
        else round(1000.0 * sum(each.request.answer.tokens for each in kept) / served.took_ms, 2),
        "throughput_tok_s": round(served.throughput_tok_s, 2),
        "errors": 0,
    }
    return dict(row)
