"""The rows of a speculation report, computed from what an engine counted on each rung."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from sparktier.configs.plan_keys import Rung
from sparktier.serving.bench.counters import Totals

# Mode and name of each rung in a report.
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
    """One point of the grid; every repeat measures it on every rung."""

    batch: int
    temperature: float
    prompts: str


RungChoice = Rung | None
"""A fixed rung; None: the ladder chooses the rung."""
Measurements = dict[tuple[Case, RungChoice], list[Totals]]
"""The engine's counts in each repeat; every choice of a case has the same repeats."""
ReportRows = list[dict[str, Any]]


def report_row(case: Case, choice: RungChoice, measurements: Measurements, chosen: Mapping[int, int]) -> dict[str, Any]:
    """Return the row of one choice of a case: medians over repeats, and 95% intervals of the ratios' medians.

    Ratios are taken within repeats. `chosen` counts how many times the ladder chose each rung.
    """
    runs, off_runs = measurements[case, choice], measurements.get((case, Rung.OFF))
    mode, name = _LADDER if choice is None else RUNGS[choice]
    return {
        "mode": mode,
        "rung": name,
        "rows": round(statistics.median(totals.rows / totals.rounds for totals in runs), 2),
        "batch": case.batch,
        "temperature": case.temperature,
        "prompts": case.prompts,
        **_speed_columns(runs, case.batch),
        "accepted_length": statistics.median(totals.round_tokens for totals in runs),
        **_ratio_columns(runs, off_runs, _best(case, measurements)),
        "draft_ms": statistics.median(_draft_ms(totals) for totals in runs),
        "verify_ms": statistics.median(_part_ms(totals, "verify") for totals in runs),
        "overhead_ms": statistics.median(totals.step_ms - _forward_ms(totals) for totals in runs),
        "users": statistics.median(totals.users for totals in runs),
        "chosen": None if choice is not None else {RUNGS[Rung(rung)][1]: chosen[rung] for rung in sorted(chosen)},
        "repeats": len(runs),
    }


def _speed_columns(runs: Sequence[Totals], batch: int) -> dict[str, float]:
    speeds = [_tok_s(totals) for totals in runs]
    median = statistics.median(speeds)
    return {"tok_s": median, "tok_s_min": min(speeds), "tok_s_max": max(speeds), "tok_s_per_user": median / batch}


def _ratio_columns(
    runs: Sequence[Totals], off_runs: Sequence[Totals] | None, best_runs: Sequence[Totals]
) -> dict[str, float | None]:
    """Ratios of speeds; `realised_frac` is the speed-up over the one that free drafting overhead would give."""
    to_off = _ratios(runs, off_runs)
    ideal = [
        totals.round_tokens * off.step_ms / _forward_ms(totals)
        for totals, off in zip(runs, off_runs or (), strict=False)
    ]
    return {
        **_median_columns("ratio_to_off", to_off),
        **_median_columns("ratio_to_best", _ratios(runs, best_runs)),
        **_median_columns("realised_frac", [ratio / best for ratio, best in zip(to_off, ideal, strict=True)]),
    }


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the median; the range, where there are three values or fewer."""
    if len(values) <= 3:
        return min(values), max(values)
    resampled = bootstrap([np.asarray(values)], np.median, method="percentile", rng=np.random.default_rng(0))
    low, high = resampled.confidence_interval
    return float(low), float(high)


def _best(case: Case, measurements: Measurements) -> Sequence[Totals]:
    """Return the runs of the fastest fixed rung of this case, by its median speed-up over the first fixed rung.

    Speed-ups are taken within repeats, because the machine's own speed differs between repeats.
    """
    fixed = [runs for (at, choice), runs in measurements.items() if at == case and choice is not None]
    return max(fixed, key=lambda runs: statistics.median(_ratios(runs, fixed[0])))


def _ratios(runs: Sequence[Totals], others: Sequence[Totals] | None) -> list[float]:
    return [_tok_s(totals) / _tok_s(other) for totals, other in zip(runs, others, strict=True)] if others else []


def _median_columns(name: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = median_interval(values)
    return {name: statistics.median(values), f"{name}_low": low, f"{name}_high": high}


def _tok_s(totals: Totals) -> float:
    return totals.tokens / (sum(totals.part_ms.values()) / 1000.0)


def _part_ms(totals: Totals, part: str) -> float:
    return totals.part_ms.get(part, 0.0) / totals.steps


def _draft_ms(totals: Totals) -> float:
    """Return the cost of a drafter: drafting, and writing features into the draft's KV cache."""
    return _part_ms(totals, "draft") + _part_ms(totals, "inject")


def _forward_ms(totals: Totals) -> float:
    return _draft_ms(totals) + _part_ms(totals, "verify")
