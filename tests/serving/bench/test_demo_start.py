"""The demo's promises fit the machine that it starts on, which is measured once."""

from pathlib import Path
from typing import Any

import pytest

from sparktier.cluster.feasibility import fastest_alone_tok_s
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ReplicaError
from sparktier.configs.loading.loader import load_settings, parse_overrides
from sparktier.configs.step_times import reference_table, write_table
from sparktier.serving.bench import demo_start

DEMO = Path(__file__).resolve().parents[3] / "configs" / "demo.yaml"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Where tables were written, instead of measuring."""
    found: list[Path] = []

    def profile(_settings: Any, *, out: Path, **_options: Any) -> int:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_table(out, reference_table("avx2"))
        found.append(out)
        return 0

    monkeypatch.setattr(demo_start.profile_command, "run", profile)
    monkeypatch.setattr(demo_start, "table_path", lambda _settings, _config: tmp_path / "tables" / "demo.json")
    return found


def test_the_machine_is_measured_on_the_first_start_alone(measured: list[Path]) -> None:
    settings = load_settings(DEMO)
    first, second = (demo_start.fitting(settings, DEMO) for _ in range(2))
    assert first == second
    assert len(measured) == 1


def test_promises_are_ones_that_one_user_gets_without_drafts(measured: list[Path]) -> None:
    options = [option.removeprefix("--set=") for option in demo_start.fitting(load_settings(DEMO), DEMO)]
    settings = load_settings(DEMO, parse_overrides(options))
    assert settings.speculation.step_times_path == str(measured[0])
    promised = [tier.promise_tok_s for tier in settings.tiers.values() if tier.promise_tok_s is not None]
    without_drafts_tok_s = fastest_alone_tok_s(StepTimeModel(reference_table("avx2")), {0: 0})
    assert promised
    assert all(0.3 * without_drafts_tok_s < promise < 0.36 * without_drafts_tok_s for promise in promised)


def test_a_machine_that_no_table_explains_serves_with_labels(
    measured: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_settings: Any, **_options: Any) -> int:
        raise ReplicaError("no table explains this")

    monkeypatch.setattr(demo_start.profile_command, "run", refuse)
    assert demo_start.fitting(load_settings(DEMO), DEMO) == []
    assert measured == []
