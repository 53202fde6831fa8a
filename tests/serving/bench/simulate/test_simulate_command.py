"""`sparktier simulate`: the same bytes again, a run that was cut off goes on, and the tables say what they should."""

import json
from pathlib import Path

import pytest

from sparktier.configs.errors import ConfigError
from sparktier.serving.bench.simulate import command, scenario
from sparktier.serving.bench.simulate.comparison import compared
from sparktier.serving.bench.simulate.settings import SimulateSettings, load_simulate_settings
from sparktier.serving.cli.main import main

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
REPORTS = ("trace", "replicas", "load", "policy", "tier", "attainment_frac", "goodput_tok_s", "violations", "errors")


@pytest.fixture(name="trace")
def _trace(tmp_path: Path) -> Path:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [
        f"2024-05-10 00:00:{second:02d}.{half},{50 + second},{40 + second}" for second in range(60) for half in "05"
    ]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(name="settings")
def _settings() -> SimulateSettings:
    read = load_simulate_settings(CONFIGS / "sim-v4-flash.yaml")
    traffic = read.traffic.model_copy(update={"start_s": 0.0, "warm_up_s": 2.0, "counted_s": 20.0, "drain_s": 3.0})
    changes = {"replicas": 2, "loads": (2.0,), "policies": ("dspark", "sparktier"), "seeds": (1,), "traffic": traffic}
    return read.model_copy(update=changes)


def test_the_same_settings_give_the_same_bytes_after_an_interruption_too(
    settings: SimulateSettings, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    assert command.run(settings, trace=trace, report=whole, plot=tmp_path / "plot.png") == 0
    assert (tmp_path / "plot.png").stat().st_size > 0
    asked: list[str] = []
    real = scenario.cell_rows

    def cut_off(*arguments: object) -> list[dict[str, object]]:
        asked.append(arguments[2].policy)  # type: ignore[attr-defined]
        if asked == ["dspark", "sparktier"]:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "cell_rows", cut_off)
    with pytest.raises(KeyboardInterrupt):
        command.run(settings, trace=trace, report=resumed, plot=None)
    assert command.run(settings, trace=trace, report=resumed, plot=None) == 0
    assert asked == ["dspark", "sparktier", "sparktier"]
    assert resumed.read_bytes() == whole.read_bytes()


def test_rows_say_what_happened_and_what_the_engine_refuses(settings: SimulateSettings, trace: Path) -> None:
    rows = [
        row for _, found in command.simulated_cells(settings, trace, known={}, keep=lambda *_: None) for row in found
    ]
    assert all(set(REPORTS) <= set(row) for row in rows)
    marked = {row["policy"]: row["refused_by_engine"] for row in rows}
    assert marked == {"dspark": "", "sparktier": scenario.REFUSED_BY_ENGINE}
    offered = {policy: sum(row["requests"] for row in rows if row["policy"] == policy) for policy in marked}
    assert offered["dspark"] == offered["sparktier"] > 40


def test_policies_are_compared_block_by_block() -> None:
    def row(policy: str, good: list[int], tok_s: float) -> dict[str, object]:
        return {"load": 1.0, "seed": 1, "policy": policy, "good_tokens_by_block": good, "throughput_tok_s": tok_s}

    rows = [row("sparktier", [20, 40], 9.0), row("dspark", [10, 20], 10.0), row("off", [0, 0], 5.0)]
    twice, nothing = compared(rows)
    assert (twice["goodput_ratio"], twice["low"], twice["high"], twice["throughput_ratio"]) == (2.0, 2.0, 2.0, 0.9)
    assert (nothing["goodput_ratio"], nothing["low"]) == (None, None)


def test_an_unknown_policy_or_a_table_that_is_not_there_is_named(
    settings: SimulateSettings, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="must be one of off, mtp1"):
        command.run(settings.model_copy(update={"policies": ("best",)}), trace=trace, report=None, plot=None)
    file = tmp_path / "sim.yaml"
    text = (CONFIGS / "sim-v4-flash.yaml").read_text()
    file.write_text(text.replace("step_times: v4-flash-fitted", "step_times: mine.json"))
    assert main(["simulate", str(file), "--trace", str(trace)]) == 2
    assert "profile.step_times: must be a file that is there" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sim-v4-flash", "sim-v4-pro", "sim-cpu"])
def test_the_committed_files_are_sound(name: str) -> None:
    settings = load_simulate_settings(CONFIGS / f"{name}.yaml")
    assert scenario.spec_of(settings).replicas == settings.replicas
    json.dumps(settings.model_dump(mode="json"))
