"""The form of reports is one, with git and without it."""

import subprocess
from pathlib import Path

import pytest

from sparktier.configs import report
from sparktier.configs.report import Report, report_meta, write_report
from sparktier.serving.cli.main import main

PLAN = Path(__file__).resolve().parents[2] / "configs" / "deployments" / "qwen3-235b-a22b-8xh200.yaml"


def test_a_report_names_the_commit_of_its_code() -> None:
    here = Path(report.__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout
    assert report_meta("bench", seed=1).commit == head.strip()


def test_without_git_the_commit_is_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report_meta("bench", seed=1).commit is None


def test_a_repository_that_the_code_is_no_part_of_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "inner" / "report.py"
    wheel.parent.mkdir()
    wheel.touch()
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "--message=a"]
    for command in (["git", "init", "--quiet"], commit):
        subprocess.run(command, cwd=tmp_path, check=True)
    monkeypatch.setattr(report, "__file__", str(wheel))
    assert report_meta("bench", seed=1).commit is None


def test_every_command_s_report_is_of_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write_report(tmp_path / "a.json", report_meta("evaluate", seed=1), [{"accepted_length": 2.5}])
    assert main(["doctor", "--plan", str(PLAN), "--json", str(tmp_path / "b.json")]) == 0
    a, b = (Report.model_validate_json((tmp_path / name).read_bytes()) for name in ("a.json", "b.json"))
    assert (a.meta.command, a.meta.seed, a.rows) == ("evaluate", 1, [{"accepted_length": 2.5}])
    assert (b.meta.command, b.meta.seed) == ("doctor --plan", None)
    assert a.meta.machine == b.meta.machine
    assert b.rows
