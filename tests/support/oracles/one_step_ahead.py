"""Compares kept steps of the real engine with the simulated one, one step ahead from the same state and running freely.

A step whose rows hang on a relative change of survivals below LEAST_MARGIN, which rounding can make, is listed.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sparktier.cluster.arrays import Floats, Ints
from sparktier.cluster.simulator.policies import Policy, StepView
from sparktier.cluster.simulator.sim_engine import Running, SimEngine, SimRequest, SimStep
from sparktier.cluster.simulator.users import SteppingEngine
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.survival_memory import TierCurves
from sparktier.cluster.verify_planner import Offers, best_total, weights
from sparktier.configs.step_times import reference_table
from sparktier.serving.bench.tiers import grid
from sparktier.serving.bench.tiers.settings import TableSettings

LEAST_MARGIN = 1e-5
Key = tuple[int, ...]


class Before(NamedTuple):
    """A request before a step: times in ms, tokens delivered, and the survivals of its last draft."""

    submitted_ms: float
    first_ms: float
    delivered: int
    seen: Floats | None


class Kept(NamedTuple):
    """One step of the real engine. ended: keys with submission, first and last token in ms; drafted: survivals of the
    step's drafts; unlike: keys of the run's answers so far that are not the recorded ones."""

    now_ms: float
    step: SimStep
    ended: Sequence[tuple[Key, float, float, float]]
    before: Mapping[Key, Before]
    curves: TierCurves
    drafted: Mapping[Key, Floats]
    unlike: Sequence[Key]


class PassedOn:
    """A `SteppingEngine` that asks another; what is kept of a step, subclasses say."""

    def __init__(self, engine: SteppingEngine) -> None:
        self._engine = engine

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._engine.idle

    def submit(self, request: SimRequest, *, now_ms: float) -> None:
        """Queue a request that arrives now."""
        self._engine.submit(request, now_ms=now_ms)


@dataclass
class Run:
    """One run: decode steps, those unlike one step ahead, and those with a small margin, by their number among all.

    unlike_free: the first step of the free run that is another. errors: quantiles 0.5, 0.99 and 1 of how far survivals
    are from the recorded ones, relative to them.
    """

    policy: str
    promise_tok_s: float
    steps: int = 0
    requests: int = 0
    unlike: list[dict[str, Any]] = field(default_factory=list)
    close: list[tuple[int, float]] = field(default_factory=list)
    unlike_free: int | None = None
    unlike_text: list[Key] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


def compared(
    kept: Sequence[Kept],
    asked: Mapping[Key, SimRequest],
    free: Sequence[SimStep],
    *,
    policy: Policy,
    promise_tok_s: float,
    table: TableSettings,
    users: int,
) -> Run:
    """Take every decode step of `kept` again from the state before it, with the texts of `asked`.

    Args:
        kept: a run of the real engine.
        asked: its requests.
        free: the steps of a simulated engine that ran by itself.
        policy: of both.
        promise_tok_s: of strict users.
        table: with step times and limits.
        users: at once.
    """
    run, times = Run(policy.name, promise_tok_s), StepTimeModel(reference_table(table.step_times))
    views: list[StepView] = []

    def watched(view: StepView, model: StepTimeModel, rung: int) -> Ints:
        views.append(view)
        return policy.rows(view, model, rung)

    twin = Policy(policy.name, watched, policy.heeds_promises, policy.drafts, policy.paced)
    ahead = SimEngine(twin, times=times, true_times=times, limits=grid.limits_of(table, users))
    errors: list[float] = [0.0]
    for number, each in enumerate(kept):
        run.requests += len(each.ended)
        if not len(each.step.rows):
            continue
        run.steps += 1
        ahead.resume([_running(asked[key], each.before[key]) for key in each.step.keys], deepcopy(each.curves))
        step, view = ahead.step(now_ms=each.now_ms), views.pop()
        gap = margin(view, policy, times, table.rung)
        off = _errors(each, view.live)
        errors += off
        if gap < LEAST_MARGIN:
            run.close.append((number, gap))
        facts = [(name, [getattr(one, name).tolist() for one in (each.step, step)]) for name in ("rows", "tokens")]
        if any(pair[0] != pair[1] for _, pair in facts):
            run.unlike.append({"step": number, "margin": gap, "error": max(off, default=0.0), **dict(facts)})
    run.unlike_free = first_unlike([each.step for each in kept], free)
    run.unlike_text = list(kept[-1].unlike)
    run.errors = np.quantile(errors, [0.5, 0.99, 1.0]).tolist()
    return run


def first_unlike(first: Sequence[SimStep], second: Sequence[SimStep]) -> int | None:
    """The first step in which two runs are not the same; None if there is none."""
    for number, pair in enumerate(zip(first, second, strict=False)):
        one, other = ((list(s.keys), s.rows.tolist(), s.tokens.tolist(), s.took_ms) for s in pair)
        if one != other:
            return number
    return None if len(first) == len(second) else min(len(first), len(second))


def margin(view: StepView, policy: Policy, times: StepTimeModel, rung: int) -> float:
    """The least relative change of every survival that could change a step's total, or whose a row is."""
    assert policy.paced is not None
    weight = weights(
        tier_weight=np.where(view.promise_tok_s > 0, policy.paced.strict_weight, 1.0),
        promise_tok_s=view.promise_tok_s,
        since_first_s=view.since_first_s,
        delivered_tokens=view.delivered_tokens,
        rules=policy.paced.rules,
    )
    nodes = np.arange(view.live.shape[1]) < (view.most_rows - 1)[:, None]
    offers = Offers(view.lagged, view.most_rows, weight)
    given = best_total(offers, times, rung=rung, context_tokens=view.context_tokens) - len(weight)
    lagged, live = (np.sort((each * weight[:, None])[nodes & (each > 0)])[::-1] for each in (view.lagged, view.live))
    totals = len(weight) + np.arange(len(lagged) + 1)
    step_ms = times.step_ms(rung=rung, requests=len(weight), rows=totals, context_tokens=view.context_tokens)
    return min(_total_margin(float(weight.sum()), lagged, step_ms, given), _share_margin(live, given))


def _running(request: SimRequest, before: Before) -> Running:
    return Running(request, before.submitted_ms, before.first_ms, before.delivered, before.seen)


def _errors(kept: Kept, recorded: Floats) -> list[float]:
    errors: list[float] = []
    for key, row in zip(kept.step.keys, recorded, strict=True):
        if key in kept.drafted:
            there = row > 0
            errors += (np.abs(kept.drafted[key] - row)[there] / row[there]).tolist()
    return errors


def _total_margin(certain: float, values: Floats, step_ms: Floats, given: int) -> float:
    """Until another number of rows is better; values [n] fall, step_ms [n + 1] is by rows beyond anchors."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    best, ahead = min(given, len(values)), []
    for other in range(len(sums)):
        if other != best:
            gap = (certain + sums[best]) / step_ms[best] - (certain + sums[other]) / step_ms[other]
            fewer, more = min(best, other), max(best, other)
            movable = sums[fewer] * abs(1 / step_ms[best] - 1 / step_ms[other])
            ahead.append(float(gap / (movable + (sums[more] - sums[fewer]) / step_ms[more])))
    return min(ahead, default=1.0)


def _share_margin(values: Floats, given: int) -> float:
    """Until the first value that gets no row passes the last one that does; values [n] fall."""
    if not 0 < given < len(values):
        return 1.0
    last, first = float(values[given - 1]), float(values[given])
    return (last - first) / (last + first)
