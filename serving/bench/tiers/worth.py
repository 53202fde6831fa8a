"""Compares policies on promises kept and tokens per second, seed by seed: what `sparktier bench tiers` concludes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from sparktier.cluster.simulator.outcome import Point, attainment_on_hull
from sparktier.cluster.simulator.policies import STATIC

Rows = Sequence[Mapping[str, Any]]
_CONFIDENCE = 0.95


def worth(rows: Rows) -> list[dict[str, Any]]:
    """Return, for each cell over all its seeds, what `tiered` and every rival gave, and their difference by seed.

    `over_hull_points`: attainment of `tiered` above the upper hull of equal and fixed weights at its own throughput.
    """
    found = []
    strict = [row for row in rows if row["tier"] == "strict"]
    for cell in dict.fromkeys(_cell(row) for row in strict):
        own = [row for row in strict if _cell(row) == cell]
        points = {(row["policy"], row["seed"]): Point(row["throughput_tok_s"], row["attainment_frac"]) for row in own}
        policies = list(dict.fromkeys(row["policy"] for row in own))
        seeds = list(dict.fromkeys(row["seed"] for row in own))
        head = dict(zip(("table", "users", "strict_frac", "promise_factor"), cell, strict=True))
        for policy in policies:
            found.append({**head, "policy": policy, **_against_blind(points, policy, seeds)})
            if policy == "tiered":
                found[-1] |= _over_hull(points, policies, seeds)
    return found


def _cell(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["table"], row["users"], row["strict_frac"], row["promise_factor"])


def _against_blind(points: Mapping[tuple[str, int], Point], policy: str, seeds: Sequence[int]) -> dict[str, Any]:
    gains = [points[policy, seed].attainment_frac - points["blind", seed].attainment_frac for seed in seeds]
    shares = [points[policy, seed].throughput_tok_s / points["blind", seed].throughput_tok_s for seed in seeds]
    mean, half = _interval(gains)
    return {
        "attainment_frac": round(float(np.mean([points[policy, seed].attainment_frac for seed in seeds])), 4),
        "throughput_tok_s": round(float(np.mean([points[policy, seed].throughput_tok_s for seed in seeds])), 1),
        "throughput_frac": round(float(np.mean(shares)), 4),
        "over_blind_points": round(100 * mean, 2),
        "over_blind_half_points": round(100 * half, 2),
    }


def _over_hull(
    points: Mapping[tuple[str, int], Point], policies: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    fixed = [policy for policy in policies if policy == "blind" or policy.startswith(STATIC)]
    gains = []
    for seed in seeds:
        own = points["tiered", seed]
        gains.append(
            own.attainment_frac - attainment_on_hull([points[policy, seed] for policy in fixed], own.throughput_tok_s)
        )
    mean, half = _interval(gains)
    return {"over_hull_points": round(100 * mean, 2), "over_hull_half_points": round(100 * half, 2)}


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its interval; infinite for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("inf")
    error = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return mean, float(student.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * error
