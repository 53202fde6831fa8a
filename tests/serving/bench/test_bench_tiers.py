"""`sparktier bench tiers`: what one cell shows, and that a second or a resumed run writes the same bytes."""

import json
from pathlib import Path

import numpy as np
import pytest

from sparktier.cluster.simulator.recorded_text import read_recorded
from sparktier.serving.bench.tiers import command, grid
from sparktier.serving.bench.tiers.settings import TiersSettings, load_tiers_settings
from sparktier.serving.bench.tiers.worth import worth
from sparktier.serving.cli.main import main

MEASURED = Path(__file__).parents[3] / "docs" / "measurements" / "tiers.yaml"
SMALL = """
seeds: [1, 2]
policies: [blind, static-2, tiered]
tables:
  production:
    step_times: production
    nodes: 5
    users: [16]
    promise_factors: [0.9]
    strict_fracs: [0.25]
    turns: 1
    prompt_tokens: 0
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_a_second_run_writes_the_same_bytes(small: Path, tmp_path: Path) -> None:
    found = []
    for name in ("first", "second"):
        report, plot = tmp_path / f"{name}.json", tmp_path / f"{name}.png"
        assert main(["bench", "tiers", str(small), "--json", str(report), "--plot", str(plot)]) == 0
        found.append((report.read_bytes(), plot.read_bytes()))
        assert not list(tmp_path.glob("*.part"))
    assert found[0] == found[1]
    rows = json.loads(found[0][0])["rows"]
    assert len(rows) == 2 * 3 * 2  # seeds, policies, tiers
    assert {row["requests"] for row in rows} == {4, 12}


def test_an_interrupted_run_goes_on(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, report = load_tiers_settings(small), tmp_path / "report.json"
    ran = []
    unit_rows = grid.unit_rows

    def interrupted(unit: grid.Unit, settings: TiersSettings, engines: grid.Engines) -> grid.Rows:
        ran.append(unit.seed)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return unit_rows(unit, settings, engines)

    monkeypatch.setattr(grid, "unit_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.run(settings, report=report, plot=None)
    kept = tmp_path / "report.json.part"
    kept.write_text(kept.read_text() + '["torn')
    command.run(settings, report=report, plot=None)
    assert ran == [1, 2, 2]
    whole = tmp_path / "whole.json"
    command.run(settings, report=whole, plot=None)
    assert report.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("table", "least_points", "least_frac"), [("production", 10.0, 0.96), ("avx2", 5.0, 0.95)])
def test_one_cell_of_each_table(table: str, least_points: float, least_frac: float) -> None:
    settings = load_tiers_settings(MEASURED).narrowed(
        policies=["blind", "tiered"], promise_factors=[0.9], strict_fracs=[0.25], seeds=[11], tables=[table]
    )
    blind, tiered = worth(grid.unit_rows(grid.units(settings)[-1], settings))
    assert (blind["policy"], tiered["policy"]) == ("blind", "tiered")
    assert tiered["over_blind_points"] >= least_points
    assert tiered["throughput_frac"] >= least_frac


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "mars"], "--table: must be a table of the file: production (found mars)"),
        (["--policy", "best"], "--policy: must be one of"),
        (["--engine", "--policy", "floors"], "--policy: with --engine, must be one that ranks have"),
        (["--engine"], "tables.production: with --engine, a table must name recorded text and the deployment"),
    ],
)
def test_wrong_options_are_named(
    small: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "tiers", str(small), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(SMALL.replace("turns: 1", "turns: 0"))
    assert main(["bench", "tiers", str(path)]) == 2
    assert "tables.production.turns: must be at least 1 (found 0)" in capsys.readouterr().err


def test_the_recorded_file_has_the_answers_of_the_cpu_table() -> None:
    table = load_tiers_settings(MEASURED).tables["avx2"]
    assert table.recorded is not None
    for kind, nodes in (("chain5", 5), ("tree12", 11)):
        answers = read_recorded(table.recorded, kind).answers
        assert len(answers) >= 130
        for answer in answers:
            assert answer.ids is not None
            assert answer.survival.shape == (len(answer.ids.answer) - 1, nodes)
            assert (np.diff(answer.survival, axis=1) <= 0).all()
