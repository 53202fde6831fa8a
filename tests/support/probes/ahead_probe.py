"""Runs cells of a measurement on the real engine in virtual time, and compares the simulated engine with it.

`python -m support.probes.ahead_probe SETTINGS FOLDER PLACES`, from tests/: of each recorded answer only so many last
places are asked for; what is before belongs to its prompt. The steps of the real engine are kept in FOLDER run by run,
so that an interrupted program goes on. Called again once all are kept, it compares and writes FOLDER/found.json.
"""

import json
import pickle
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sparktier.cluster.arrays import Floats
from sparktier.cluster.simulator.answers import Texts
from sparktier.cluster.simulator.policies import Policy
from sparktier.cluster.simulator.sim_engine import Ended, SimRequest, SimStep
from sparktier.cluster.simulator.users import SteppingEngine
from sparktier.configs.files import staged
from sparktier.serving.bench.tiers import grid
from sparktier.serving.bench.tiers.real_engines import RealEngines
from sparktier.serving.bench.tiers.settings import TableSettings, TiersSettings, load_tiers_settings
from sparktier.serving.bench.tiers.virtual_engine import VirtualEngine
from support.inputs.drafted_again import DraftedAgain, LastTokens
from support.oracles.one_step_ahead import Before, Kept, PassedOn, Run, compared


class TracedEngine(PassedOn):
    """The real engine as a `SteppingEngine` that keeps its steps, and what it knew before each."""

    def __init__(self, real: VirtualEngine) -> None:
        super().__init__(real)
        self._real = real
        self.kept: list[Kept] = []

    def step(self, *, now_ms: float) -> SimStep:
        """Run one step."""
        names = {name: asked.request.key for name, asked in self._real._asked.items()}
        seen = self._drafted(names)
        before = {
            asked.request.key: Before(asked.submitted_ms, asked.first_ms, asked.delivered, seen.get(asked.request.key))
            for asked in self._real._asked.values()
        }
        curves = deepcopy(self._pacer._curves)
        step = self._real.step(now_ms=now_ms)
        times = [(each.request.key, each.submitted_ms, each.first_ms, each.last_ms) for each in step.ended]
        bare = replace(step, ended=[])
        self.kept.append(Kept(now_ms, bare, times, before, curves, self._drafted(names), list(self._real.unlike)))
        return step

    @property
    def _pacer(self) -> Any:
        return self._real._engine.worker.pacer

    def _drafted(self, names: dict[str, tuple[int, ...]]) -> dict[tuple[int, ...], Floats]:
        return {names[name]: last.survival for name, last in self._pacer._drafted.items() if name in names}


class ReplayedEngine:
    """A `SteppingEngine` that takes kept steps."""

    def __init__(self, kept: Sequence[Kept]) -> None:
        self.kept, self._next = kept, 0
        self.asked: dict[tuple[int, ...], SimRequest] = {}
        self._running = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._running == 0

    def submit(self, request: SimRequest, *, now_ms: float) -> None:
        """Note a request."""
        self.asked[request.key] = request
        self._running += 1

    def step(self, *, now_ms: float) -> SimStep:
        """Return the next step."""
        kept = self.kept[self._next]
        assert now_ms == kept.now_ms
        self._next, self._running = self._next + 1, self._running - len(kept.ended)
        return replace(kept.step, ended=[Ended(self.asked[key], *times) for key, *times in kept.ended])


class KeptEngines:
    """Makes the engines of one unit for `grid.unit_rows`: the real one where a run isn't kept, else a replay."""

    def __init__(self, settings: TiersSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._real: RealEngines | None = None
        self._running: tuple[Path, TracedEngine] | None = None
        self.unit: grid.Unit

    def __call__(self, table: TableSettings, users: int, policy: Policy, promise_tok_s: float) -> SteppingEngine:
        """Return the engine of a run."""
        self.finish()
        path = self._folder / f"{self.unit.seed}-{self.unit.strict_frac:g}-{policy.name}-{promise_tok_s:.4f}.pickle"
        if path.exists():
            return ReplayedEngine(pickle.loads(path.read_bytes()))
        self._real = self._real or RealEngines(self._settings)
        traced = TracedEngine(self._real(table, users, policy, promise_tok_s))
        self._running = path, traced
        return traced

    @property
    def has_run(self) -> bool:
        """Whether the real engine was needed."""
        return self._real is not None

    def finish(self) -> None:
        """Keep the run that has ended, if any."""
        if self._running is not None:
            path, traced = self._running
            with staged(path) as part:
                part.write_bytes(pickle.dumps(traced.kept))
        self._running = None


def main(arguments: Sequence[str]) -> None:
    """Run what isn't kept; if all is, write what each run shows and the rows of every unit on both engines."""
    settings, folder, places = load_tiers_settings(Path(arguments[0])), Path(arguments[1]), int(arguments[2])
    folder.mkdir(exist_ok=True)
    (table,) = settings.tables.values()
    texts: Texts = LastTokens(grid.texts_of(table), places)
    grid.texts_of = lambda _table: texts
    engines = KeptEngines(settings, folder)
    for engines.unit in grid.units(settings):
        grid.unit_rows(engines.unit, settings, engines)
        engines.finish()
    if engines.has_run:
        # Another process compares: SGLang has changed this one.
        return
    assert table.deployment is not None
    drafted = DraftedAgain(texts, table.deployment, table.drafts)
    grid.texts_of = lambda _table: drafted
    found = [_found(engines, unit, settings) for unit in grid.units(settings)]
    (folder / "found.json").write_text(json.dumps(found))


def _found(engines: KeptEngines, unit: grid.Unit, settings: TiersSettings) -> dict[str, Any]:
    """Compare the runs of a unit, which are all kept."""
    table = settings.tables[unit.table]
    runs: list[tuple[Policy, float, ReplayedEngine]] = []
    free: list[list[SimStep]] = []
    engines.unit = unit

    def replayed(table: TableSettings, users: int, policy: Policy, promise_tok_s: float) -> SteppingEngine:
        engine = engines(table, users, policy, promise_tok_s)
        assert isinstance(engine, ReplayedEngine)
        runs.append((policy, promise_tok_s, engine))
        return engine

    def freely(table: TableSettings, users: int, policy: Policy, promise_tok_s: float) -> SteppingEngine:
        free.append([])
        return _Watched(grid.simulated(table, users, policy, promise_tok_s), free[-1])

    real, simulated = grid.unit_rows(unit, settings, replayed), grid.unit_rows(unit, settings, freely)
    shown: list[Run] = [
        compared(engine.kept, engine.asked, steps, policy=policy, promise_tok_s=promise, table=table, users=unit.users)
        for (policy, promise, engine), steps in zip(runs, free, strict=True)
    ]
    runs_shown = [asdict(run) for run in shown]
    return {"unit": unit.name, "equal": real == simulated, "runs": runs_shown, "real": real, "simulated": simulated}


class _Watched(PassedOn):
    """A `SteppingEngine` whose steps are kept in a list."""

    def __init__(self, engine: SteppingEngine, steps: list[SimStep]) -> None:
        super().__init__(engine)
        self._steps = steps

    def step(self, *, now_ms: float) -> SimStep:
        self._steps.append(self._engine.step(now_ms=now_ms))
        return self._steps[-1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
