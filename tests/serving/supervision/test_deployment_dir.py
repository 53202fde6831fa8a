"""Each run has a directory of its own, and old ones go, but never a living run's; replicas count there."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sparktier.configs.errors import ArtifactError
from sparktier.serving.supervision import deployment_dir
from sparktier.serving.supervision.deployment_dir import (
    METRICS_DIR_ENV,
    DeploymentDir,
    fresh_metrics_env,
    new_deployment_dir,
    runs_folder,
)

HOLDER = (
    "import sys, pathlib; from sparktier.serving.supervision.deployment_dir import DeploymentDir; "
    "run = DeploymentDir(pathlib.Path(sys.argv[1])); "
)


def test_only_the_last_few_ended_runs_are_kept(tmp_path: Path) -> None:
    for day in range(10, 40):
        run = tmp_path / f"202601{day}-000000-{day}"
        (run / "inner").mkdir(parents=True)
        (run / "lock").touch()
    # Of another container, whose pids are none here.
    living = tmp_path / "20250101-000000-4000000"
    living.mkdir()
    command = [sys.executable, "-c", HOLDER + "print('held', flush=True); input()", str(living)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        made = new_deployment_dir(tmp_path / ".")
        kept = sorted(path.name.split("-")[0] for path in tmp_path.iterdir() if path not in (living, made.path))
        assert kept == [f"202601{day}" for day in range(20, 40)]
        assert living.is_dir()
    assert [path.name for path in made.path.iterdir()] == ["lock"]
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    names = ["lost+found", ".DS_Store", "notes-2026", "20260101-000000-x", "20260101-000000-12-old", "\udcff-1", "-"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "20200101-000000-1").write_text("a file named like a run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "20200101-000000-2").symlink_to(elsewhere)
    for day in range(10, 40):
        (tmp_path / f"202601{day}-000000-1").mkdir()
    before = {path for path in tmp_path.iterdir() if not path.name.startswith("202601")}
    new_deployment_dir(tmp_path)
    assert before <= set(tmp_path.iterdir())
    assert len(list(tmp_path.glob("202601*-000000-1"))) == 20


def test_two_containers_may_have_the_same_pid_in_the_same_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    runs = {new_deployment_dir(tmp_path).path for _ in range(3)}
    assert len(runs) == 3
    assert all(deployment_dir._NAME.fullmatch(path.name) for path in runs)


def test_a_removed_run_is_made_again_and_is_held_again(tmp_path: Path) -> None:
    run = new_deployment_dir(tmp_path / "runs")
    settings = run.path / "settings.yaml"
    settings.write_text("model: demo")
    run.keep(settings)
    assert run.restore() == []
    shutil.rmtree(tmp_path / "runs")
    assert run.restore() == [settings]
    assert settings.read_text() == "model: demo"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert not deployment_dir._has_ended(run.path)


def test_a_run_whose_process_has_gone_has_ended(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path)], check=True)
    assert deployment_dir._has_ended(tmp_path)
    held = DeploymentDir(tmp_path)
    assert not deployment_dir._has_ended(held.path)


def test_runs_go_elsewhere_when_the_cache_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARKTIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert runs_folder() == tmp_path / "cache" / "runs"
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").write_text("a file")
    elsewhere = tmp_path / f"sparktier-{os.getuid()}"
    assert runs_folder() == elsewhere / "runs"
    elsewhere.write_text("a file as well")
    with pytest.raises(ArtifactError, match=r"SPARKTIER_CACHE: .* Not a directory.*; .*Not a directory"):
        runs_folder()


def test_a_replica_counts_from_nothing_in_every_life(tmp_path: Path) -> None:
    first, other = (Path(fresh_metrics_env(tmp_path, number)[METRICS_DIR_ENV]) for number in (0, 1))
    for counted in (first, other):
        (counted / "counter_7.db").touch()
    assert Path(fresh_metrics_env(tmp_path, 0)[METRICS_DIR_ENV]) == first
    assert (list(first.iterdir()), len(list(other.iterdir()))) == ([], 1)
