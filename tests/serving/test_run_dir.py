"""Each run has a directory of its own, and old ones go, but never a living run's."""

import os
from pathlib import Path

import psutil

from sparktier.serving.run_dir import new_run_dir


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
