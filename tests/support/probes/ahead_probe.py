"""Runs cells of a measurement on the real engine in virtual time, and the simulated engine one step ahead of it.

Run as a program: `python -m support.probes.ahead_probe SETTINGS OUT`. Before each decode step the simulated engine is
given the real one's state, but its texts are the recorded ones: rows and tokens are to be the same. A step whose rows
hang on less than LEAST_MARGIN, which rounding can move, is listed.
"""

import json
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparktier.cluster.arrays import Ints
from sparktier.cluster.simulator.policies import Policy, StepView
from sparktier.cluster.simulator.sim_engine import Running, SimEngine, SimRequest, SimStep
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, best_total, weights
from sparktier.configs.step_times import reference_table
from sparktier.serving.bench.tiers import grid
from sparktier.serving.bench.tiers.real_engines import RealEngines
from sparktier.serving.bench.tiers.settings import TableSettings, TiersSettings, load_tiers_settings
from sparktier.serving.bench.tiers.virtual_engine import VirtualEngine

LEAST_MARGIN = 1e-5


@dataclass
class Run:
    """One run: decode steps, those unlike one step ahead, those with a small margin, and whether a free run ends alike.

    texts_unlike: answers that are not the recorded ones.
    """

    policy: str
    promise_tok_s: float
    steps: int = 0
    requests: int = 0
    unlike: list[dict[str, Any]] = field(default_factory=list)
    close: list[tuple[int, float]] = field(default_factory=list)
    texts_unlike: list[tuple[int, ...]] = field(default_factory=list)


def margin(view: StepView, policy: Policy, times: StepTimeModel, rung: int) -> float:
    """The least relative change of a survival that could change a step's total, or whose a row is."""
    assert policy.paced is not None
    weight = weights(
        tier_weight=np.where(view.promise_tok_s > 0, policy.paced.strict_weight, 1.0),
        promise_tok_s=view.promise_tok_s,
        since_first_s=view.since_first_s,
        delivered_tokens=view.delivered_tokens,
        rules=policy.paced.rules,
    )
    nodes = np.arange(view.live.shape[1]) < (view.most_rows - 1)[:, None]
    requests = len(weight)
    # 1. Of the total: the best quotient against the next best.
    lagged = np.sort((view.lagged * weight[:, None])[nodes & (view.lagged > 0)])[::-1]
    totals = requests + np.arange(len(lagged) + 1)
    step_ms = times.step_ms(rung=rung, requests=requests, rows=totals, context_tokens=view.context_tokens)
    quotients = np.sort((weight.sum() + np.concatenate(([0.0], np.cumsum(lagged)))) / step_ms)[::-1]
    gaps = [1.0] if len(quotients) < 2 else [(quotients[0] - quotients[1]) / quotients[0]]
    # 2. Of the shares: the last value that gets a row against the first that doesn't.
    total = best_total(
        Offers(view.lagged, view.most_rows, weight), times, rung=rung, context_tokens=view.context_tokens
    )
    live = np.sort((view.live * weight[:, None])[nodes & (view.live > 0)])[::-1]
    given = total - requests
    if 0 < given < len(live):
        gaps.append((live[given - 1] - live[given]) / live[given - 1])
    return float(min(gaps))


class AheadEngine:
    """The real engine as a `SteppingEngine`, each of whose decode steps the simulated one takes before it is known."""

    def __init__(self, real: VirtualEngine, ahead: SimEngine, policy: Policy, table: TableSettings, run: Run) -> None:
        self._real, self._ahead, self._policy, self.run = real, ahead, policy, run
        self._times, self._rung = StepTimeModel(reference_table(table.step_times)), table.rung
        self._views: list[StepView] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._real.idle

    def submit(self, request: SimRequest, *, now_ms: float) -> None:
        """Queue a request."""
        self._real.submit(request, now_ms=now_ms)

    def step(self, *, now_ms: float) -> SimStep:
        """Run one step on both."""
        before = self._state()
        curves = deepcopy(self._pacer._curves)
        step = self._real.step(now_ms=now_ms)
        self.run.requests += len(step.ended)
        self.run.texts_unlike = self._real.unlike
        if len(step.rows):
            self._ahead.resume([before[key] for key in step.keys], curves)
            self._compare(step, self._ahead.step(now_ms=now_ms))
        return step

    @property
    def _pacer(self) -> Any:
        return self._real._engine.worker.pacer

    def _state(self) -> dict[tuple[int, ...], Running]:
        drafted = self._pacer._drafted
        return {
            asked.request.key: Running(
                asked.request,
                asked.submitted_ms,
                asked.first_ms,
                asked.delivered,
                drafted[name].survival if name in drafted else None,
            )
            for name, asked in self._real._asked.items()
        }

    def watched(self, view: StepView, times: StepTimeModel, rung: int) -> Ints:
        """The policy's rows, with the view that they are made of kept."""
        self._views.append(view)
        return self._policy.rows(view, times, rung)

    def _compare(self, real: SimStep, ahead: SimStep) -> None:
        gap = margin(self._views.pop(), self._policy, self._times, self._rung)
        number, self.run.steps = self.run.steps, self.run.steps + 1
        if gap < LEAST_MARGIN:
            self.run.close.append((number, gap))
        facts = {"step": number, "margin": gap}
        for name in ("rows", "tokens"):
            facts[name] = [getattr(step, name).tolist() for step in (real, ahead)]
        if facts["rows"][0] != facts["rows"][1] or facts["tokens"][0] != facts["tokens"][1]:
            self.run.unlike.append(facts)


class AheadEngines:
    """Makes engines for `grid.unit_rows`, and keeps what each run showed."""

    def __init__(self, settings: TiersSettings) -> None:
        self._real = RealEngines(settings)
        self.runs: list[Run] = []

    def __call__(self, table: TableSettings, users: int, policy: Policy, promise_tok_s: float) -> AheadEngine:
        """Return an engine in a new run."""
        real = self._real(table, users, policy, promise_tok_s)
        times = StepTimeModel(reference_table(table.step_times))
        self.runs.append(Run(policy.name, promise_tok_s))
        engine: AheadEngine

        def watched(view: StepView, model: StepTimeModel, rung: int) -> Ints:
            return engine.watched(view, model, rung)

        twin = Policy(policy.name, watched, policy.heeds_promises, policy.drafts, policy.paced)
        ahead = SimEngine(twin, times=times, true_times=times, limits=grid.limits_of(table, users))
        engine = AheadEngine(real, ahead, policy, table, self.runs[-1])
        return engine


def main(arguments: Sequence[str]) -> None:
    """Write each run, and the rows of every unit on both engines."""
    settings, out = load_tiers_settings(Path(arguments[0])), Path(arguments[1])
    engines, units = AheadEngines(settings), []
    for unit in grid.units(settings):
        simulated, real = grid.unit_rows(unit, settings), grid.unit_rows(unit, settings, engines)
        units.append({"unit": unit.name, "equal": simulated == real, "simulated": simulated, "real": real})
        out.write_text(json.dumps({"runs": [asdict(run) for run in engines.runs], "units": units}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
