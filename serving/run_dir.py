"""The directory of one run of `sparktier up`: its logs and resolved settings. Knows nothing of what writes there."""

import os
import shutil
import time
from pathlib import Path

import psutil

_KEPT_RUNS = 20


def new_run_dir(parent: Path) -> Path:
    """Return a new directory under `parent`, named by time and pid, and remove all but the last few ended runs."""
    parent.mkdir(parents=True, exist_ok=True)
    ended = sorted(path for path in parent.iterdir() if not psutil.pid_exists(int(path.name.rsplit("-", 1)[-1])))
    for old in ended[:-_KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
    path = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    path.mkdir()
    return path
