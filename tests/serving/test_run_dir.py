"""Each run has a directory of its own, and old ones go, but never a living run's; replicas count there."""

import os
from pathlib import Path

import psutil

from sparktier.serving.run_dir import METRICS_DIR_ENV, fresh_metrics_env, new_run_dir


def ended_pid() -> int:
    return next(pid for pid in range(4_000_000, 1, -1) if not psutil.pid_exists(pid))


def test_only_the_last_few_ended_runs_are_kept(tmp_path: Path) -> None:
    for day in range(10, 40):
        (tmp_path / f"202601{day}-000000-{ended_pid()}" / "inner").mkdir(parents=True)
    living = tmp_path / f"20250101-000000-{os.getppid()}"
    living.mkdir()
    made = new_run_dir(tmp_path / ".")
    kept = sorted(path.name.split("-")[0] for path in tmp_path.iterdir() if path not in (living, made))
    assert kept == [f"202601{day}" for day in range(20, 40)]
    assert living.is_dir()
    assert list(made.iterdir()) == []


def test_a_replica_counts_from_nothing_in_every_life(tmp_path: Path) -> None:
    first, other = (Path(fresh_metrics_env(tmp_path, number)[METRICS_DIR_ENV]) for number in (0, 1))
    for counted in (first, other):
        (counted / "counter_7.db").touch()
    assert Path(fresh_metrics_env(tmp_path, 0)[METRICS_DIR_ENV]) == first
    assert (list(first.iterdir()), len(list(other.iterdir()))) == ([], 1)
