"""The directory of one run of `sparktier up`, with its logs, settings file and metrics, and the removal of old ones.

A run holds a lock file for as long as its process lives. A pid would not do: containers that share a cache count pids
each for itself.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import require_room
from sparktier.serving.demo_model import default_cache_dir

_KEPT_RUNS = 20
# When a run began and the pid of its process, and a number where two containers made the same name.
_NAME = re.compile(r"\d{8}-\d{6}-\d+(-\d+)?")
_LOCK = "lock"
# Logs may hold what users asked.
_MODE = 0o700
# The Prometheus client reads it: the folder in which the processes of a replica share their counts.
METRICS_DIR_ENV = "PROMETHEUS_MULTIPROC_DIR"


class DeploymentDir:
    """The directory at `path`, which this process holds until it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[Path, bytes] = {}
        self._lock = _locked(path / _LOCK)

    def keep(self, *files: Path) -> None:
        """Remember files as they are now, so that `restore` can write them again."""
        self._kept |= {file: file.read_bytes() for file in files}

    def restore(self) -> list[Path]:
        """Write again what was removed, and return which of the kept files that was.

        Raises:
            OSError: it can't be written.
        """
        self.path.mkdir(mode=_MODE, parents=True, exist_ok=True)
        if not (self.path / _LOCK).exists():
            self._lock = _locked(self.path / _LOCK)
        missing = [file for file in self._kept if not file.exists()]
        for file in missing:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as handle:
                handle.write(self._kept[file])
        return missing


def runs_folder() -> Path:
    """Return the folder for runs: in the cache, or where that can't be written, in the folder for temporary files.

    Raises:
        ArtifactError: there is no room in either.
    """
    found = []
    for folder in _candidates():
        try:
            require_room(folder)
            return folder
        except OSError as error:
            found.append(f"{folder}: {error.strerror}")
    raise ArtifactError(
        f"SPARKTIER_CACHE: a run needs a folder for its logs that can be written (found {'; '.join(found)}). Free "
        "space there, or set SPARKTIER_CACHE to another folder."
    )


def _candidates() -> Iterator[Path]:
    yield default_cache_dir() / "runs"
    try:
        own = Path(tempfile.gettempdir()) / f"sparktier-{os.getuid()}"
        # Another user could read a folder of theirs.
        if not own.exists() or own.lstat().st_uid == os.getuid():
            yield own / "runs"
    except OSError:
        return


def new_deployment_dir(parent: Path) -> DeploymentDir:
    """Return a new directory under `parent`, named by time and pid, and remove all but the last few ended runs."""
    parent.mkdir(mode=_MODE, parents=True, exist_ok=True)
    ended = sorted(path for path in parent.iterdir() if _NAME.fullmatch(path.name) and _has_ended(path))
    for old in ended[:-_KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    number = 0
    while True:
        path = parent / (f"{name}-{number}" if number else name)
        try:
            path.mkdir(mode=_MODE)
            return DeploymentDir(path)
        except FileExistsError:
            number += 1


def _has_ended(run: Path) -> bool:
    """Return whether no process holds `run`; False where that can't be told."""
    if run.is_symlink() or not run.is_dir():
        return False
    try:
        with (run / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _locked(path: Path) -> IO[bytes]:
    lock = path.open("ab")
    # On a file system without locks no run can tell whether another lives, so none is removed.
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def fresh_metrics_env(deployment_dir: Path, replica: int) -> dict[str, str]:
    """Return the environment that sends a replica's counts to an empty folder; in a used one old counts would stay."""
    path = deployment_dir / f"metrics-{replica}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(exist_ok=True)
    return {METRICS_DIR_ENV: str(path)}
