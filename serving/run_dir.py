"""The directory of one run of `sparktier up`: logs, resolved settings, metrics. Knows nothing of what writes there."""

import os
import shutil
import time
from pathlib import Path

import psutil

_KEPT_RUNS = 20
# The name is the Prometheus client's: where the processes of a replica share what they count.
METRICS_DIR_ENV = "PROMETHEUS_MULTIPROC_DIR"


def new_run_dir(parent: Path) -> Path:
    """Return a new directory under `parent`, named by time and pid, and remove all but the last few ended runs."""
    parent.mkdir(parents=True, exist_ok=True)
    ended = sorted(path for path in parent.iterdir() if not psutil.pid_exists(int(path.name.rsplit("-", 1)[-1])))
    for old in ended[:-_KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
    path = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    path.mkdir()
    return path


def fresh_metrics_env(run_dir: Path, replica: int) -> dict[str, str]:
    """Return what tells a replica's process where to count: in an empty directory, else its last life's counts stay."""
    path = run_dir / f"metrics-{replica}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(exist_ok=True)
    return {METRICS_DIR_ENV: str(path)}
