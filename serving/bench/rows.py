"""From what an engine counted on each rung to the rows of a report."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from sparktier.configs.plan_keys import Rung
from sparktier.serving.bench.target import Totals

# The mode that the contract of reports names for a rung, and the rung's own name.
RUNGS: Mapping[Rung, tuple[str, str]] = {
    Rung.OFF: ("off", "off"),
    Rung.CHAIN_SHORT: ("chain", "short"),
    Rung.CHAIN: ("chain", "chain"),
    Rung.TREE: ("tree", "tree"),
}
_LADDER = ("ladder", "ladder")


def rungs_of(method: str) -> list[Rung]:
    """Return the rungs that a deployment with this `speculation.method` has, lowest first."""
    return [rung for rung in RUNGS if rung < Rung.TREE or method == "tree"]


@dataclass(frozen=True)
class Case:
    """One place of the grid, measured on every rung in every repeat."""

    batch: int
    temperature: float
    prompts: str


Way = Rung | None
"""A fixed rung, or None for whichever the ladder chooses."""
Found = dict[tuple[Case, Way], list[Totals]]
"""What the engine did in each repeat, the same repeats for every way of a case."""
Rows = list[dict[str, Any]]


def report_row(case: Case, way: Way, found: Found, chosen: Mapping[int, int]) -> dict[str, Any]:
    """Return the row of one way of a case: medians over repeats, and 95% intervals of the ratios' medians.

    Ratios are taken within repeats. `chosen` counts the rungs that the ladder put in force.
    """
    own, off = found[case, way], found.get((case, Rung.OFF))
    speeds = [_tok_s(totals) for totals in own]
    to_off, to_best = _ratios(own, off), _ratios(own, _best(case, found))
    lengths = [totals.round_tokens for totals in own]
    mode, name = _LADDER if way is None else RUNGS[way]
    ideal = [
        length * plain.step_ms / _forward_ms(totals)
        for totals, plain, length in zip(own, off or (), lengths, strict=False)
    ]
    return {
        "mode": mode,
        "rung": name,
        "rows": round(statistics.median(totals.rows / totals.rounds for totals in own), 2),
        "batch": case.batch,
        "temperature": case.temperature,
        "prompts": case.prompts,
        "tok_s": statistics.median(speeds),
        "tok_s_min": min(speeds),
        "tok_s_max": max(speeds),
        "tok_s_per_user": statistics.median(speeds) / case.batch,
        "accepted_length": statistics.median(lengths),
        **_middle("ratio_to_off", to_off),
        **_middle("ratio_to_best", to_best),
        **_middle("realised_frac", [r / i for r, i in zip(to_off, ideal, strict=True)]),
        "draft_ms": statistics.median(_draft_ms(totals) for totals in own),
        "verify_ms": statistics.median(_part(totals, "verify") for totals in own),
        "overhead_ms": statistics.median(totals.step_ms - _forward_ms(totals) for totals in own),
        "users": statistics.median(totals.users for totals in own),
        "chosen": {RUNGS[Rung(rung)][1]: count for rung, count in sorted(chosen.items())} if way is None else None,
        "repeats": len(own),
    }


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the median; of three values or fewer that is their range."""
    if len(values) <= 3:
        return min(values), max(values)
    resampled = bootstrap([np.asarray(values)], np.median, method="percentile", rng=np.random.default_rng(0))
    low, high = resampled.confidence_interval
    return float(low), float(high)


def _best(case: Case, found: Found) -> Sequence[Totals]:
    """The runs of the fixed rung that was fastest in this case: by speed over the first fixed rung in each repeat.

    Within repeats, as the machine is faster in some than in others.
    """
    fixed = [runs for (at, way), runs in found.items() if at == case and way is not None]
    return max(fixed, key=lambda runs: statistics.median(_ratios(runs, fixed[0])))


def _ratios(own: Sequence[Totals], others: Sequence[Totals] | None) -> list[float]:
    return [_tok_s(totals) / _tok_s(other) for totals, other in zip(own, others, strict=True)] if others else []


def _middle(name: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = median_interval(values)
    return {name: statistics.median(values), f"{name}_low": low, f"{name}_high": high}


def _tok_s(totals: Totals) -> float:
    return totals.tokens / (sum(totals.part_ms.values()) / 1000.0)


def _part(totals: Totals, part: str) -> float:
    return totals.part_ms.get(part, 0.0) / totals.steps


def _draft_ms(totals: Totals) -> float:
    """Drafting, and keeping the draft's KV up to date: what a drafter costs."""
    return _part(totals, "draft") + _part(totals, "inject")


def _forward_ms(totals: Totals) -> float:
    return _draft_ms(totals) + _part(totals, "verify")
