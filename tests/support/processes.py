"""Finding the processes that a test started, whoever their parent is by now.

Each inherits an environment variable, which stays readable after its parent has died. Linux only.
"""

import contextlib
import os
import time
from collections.abc import Iterator

import psutil


def marked(name: str, value: str) -> list[psutil.Process]:
    """Return the living processes other than this one that were started with `name=value` in their environment."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _has(process, name, value)]


def _has(process: psutil.Process, name: str, value: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value
    except psutil.Error:
        return False


def gone_within(name: str, value: str, timeout_s: float) -> list[psutil.Process]:
    """Wait until no process is `marked`, and return those that still are after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (left := marked(name, value)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def described(processes: list[psutil.Process]) -> list[str]:
    """Return a line on each of `processes`, for a failing test to show."""
    return list(_descriptions(processes))


def _descriptions(processes: list[psutil.Process]) -> Iterator[str]:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            yield f"{process.pid} {' '.join(process.cmdline())[:120]}"
