"""Under any plan the planner decides speed alone: tokens are those of rung `off`, and the rows are the planner's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, planned_rows
from sparktier.configs.step_times import reference_table
from support.oracles.oracle_draft import make_oracle_draft
from support.probes.pacing_probe import TABLE, PacedRecord, PacedRun, read_run
from support.probes.run_ranks import run_ranks
from support.probes.twin_run import TwinRun
from support.tiny_moe import make_tiny_moe

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("paced")
    model = make_tiny_moe(folder / "model", context_gain=0.2)
    return model, make_oracle_draft(folder / "draft", model, block_tokens=5)


def paced(
    checkpoints: tuple[Path, Path], out: Path, *, batches: int, ranks: int, rule: str | None = "match"
) -> list[PacedRun]:
    """What each rank decodes and verifies: our ladder by accept rule, or SGLang's own worker where `rule` is None."""
    probe, rules = ("native_probe", []) if rule is None else ("pacing_probe", [rule])
    run_ranks(probe, [*checkpoints, *rules, batches], out=out, ranks=ranks, timeout_s=3600)
    return [read_run(out / str(rank)) for rank in range(ranks)]


def planned(step: PacedRecord) -> list[int]:
    """The rows that the pure planner gives the requests of a step."""
    offers = Offers(step.live if step.takes_live else step.lagged.survival, step.lagged.most_rows, step.lagged.weight)
    rows = planned_rows(
        step.lagged,
        offers,
        StepTimeModel(reference_table(TABLE)),
        rung=step.rung,
        context_tokens=step.context_tokens,
        row_budget=step.row_budget or None,
    )
    # What the drafts have no node for is left over.
    found: list[int] = np.minimum(rows, 1 + np.count_nonzero(step.live, axis=1)).tolist()
    return found


def require_planned(runs: Sequence[PacedRun], *, least_steps: int) -> None:
    """Each step's rows are the pure planner's by rank 0's inputs, on every rank."""
    first = runs[0]
    assert len(first.steps) >= least_steps
    for number, step in enumerate(first.steps):
        assert step.rows is not None
        assert step.rows.tolist() == planned(step), number
    for run in runs[1:]:
        assert [step.rows.tolist() for step in run.steps] == [step.rows.tolist() for step in first.steps]
    # Without these the test would show little: weights that differ, rows taken from some and given to others.
    assert any(len(set(step.lagged.weight)) > 2 for step in first.steps)
    assert any(step.takes_live for step in first.steps)
    spread = [step.rows for step in first.steps if len(step.rows) > 2]
    assert np.mean([rows.max() > rows.min() for rows in spread]) > 0.3


def require_twins(run: TwinRun) -> None:
    """The simulated engine takes the real one's steps to the end: who is prefilled, rows, tokens, times, ends."""
    assert len(run.real) == len(run.simulated), run.name
    for number, (real, simulated) in enumerate(zip(run.real, run.simulated, strict=True)):
        where = (run.name, number)
        assert real.keys == simulated.keys, where
        assert real.rows.tolist() == simulated.rows.tolist(), where
        assert real.tokens.tolist() == simulated.tokens.tolist(), where
        assert real.took_ms == simulated.took_ms, where
        times = [(one.request.key, one.submitted_ms, one.first_ms, one.last_ms) for one in real.ended]
        assert times == [(one.request.key, one.submitted_ms, one.first_ms, one.last_ms) for one in simulated.ended]
    decodes = [step for step in run.real if len(step.rows)]
    assert any(step.rows.max() > step.rows.min() for step in decodes)
    assert any(step.tokens.max() > 1 for step in decodes)


@pytest.mark.parametrize("ranks", [1, 2])
def test_tokens_are_those_of_off_and_rows_the_planners(
    checkpoints: tuple[Path, Path], tmp_path: Path, ranks: int
) -> None:
    runs = paced(checkpoints, tmp_path, rule="match", batches=3, ranks=ranks)
    require_planned(runs, least_steps=60)
    for run in runs:
        assert run.paced == run.off
    for twin in runs[0].twins:
        require_twins(twin)


def test_sglangs_own_chain_is_paced_and_counted_alike(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    """On two ranks, whose clocks differ."""
    runs = paced(checkpoints, tmp_path, rule=None, batches=2, ranks=2)
    require_planned(runs, least_steps=60)
    for run in runs:
        assert run.paced == run.off
        tokens = sum(len(tokens) - 1 for tokens in run.paced.values())
        assert run.stats is not None
        assert sum(tier["tokens"] for tier in run.stats.values()) >= tokens
        assert all(tier["predicted_rounds"] > 0 and tier["rows"] > tier["rounds"] for tier in run.stats.values())
    first, second = (run.budgets or [] for run in runs)
    assert [agreed for _, agreed in second] == [own for own, _ in first]
    assert [own for own, _ in second] != [own for own, _ in first]


@pytest.mark.prove
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("rule", ["match", "ratio"])
def test_five_thousand_steps_under_hundreds_of_plans(
    checkpoints: tuple[Path, Path], tmp_path: Path, rule: str, ranks: int
) -> None:
    """1,250 steps a case."""
    runs = paced(checkpoints, tmp_path, rule=rule, batches=60, ranks=ranks)
    require_planned(runs, least_steps=1250)
    for run in runs:
        # Under the ratio rule sampled tokens follow the same distribution, but are not the same tokens.
        places = {name: [int(part) for part in name.split("-")] for name in run.off}
        sampled = {name for name, (batch, number) in places.items() if batch % 3 > 0 and number % 3 == 2}
        names = run.off.keys() if rule == "match" else run.off.keys() - sampled
        assert {name: run.paced[name] for name in names} == {name: run.off[name] for name in names}
