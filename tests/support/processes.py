"""Keeping sight of every process that a test starts, whatever its parent is by now. Linux only."""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence

import psutil


class Family:
    """A process and all that it ever started, as far as anyone looked while the parents were alive.

    Parents are followed, not marks in the environment: a process that sets its own title wipes that. Processes whose
    command line has one of `besides` don't count.
    """

    def __init__(self, founder: psutil.Process, *, besides: Sequence[str] = ()) -> None:
        self._seen = {founder}
        self._besides = besides

    def living(self) -> list[psutil.Process]:
        """Return the members that are alive, besides the caller."""
        for process in list(self._seen):
            with contextlib.suppress(psutil.Error):
                self._seen.update(process.children(recursive=True))
        self._seen = {process for process in self._seen if _alive(process)}
        return [process for process in self._seen if process.pid != os.getpid() and not self._excused(process)]

    def _excused(self, process: psutil.Process) -> bool:
        line = command_line(process)
        return any(words in line for words in self._besides)

    def gone_within(self, timeout_s: float) -> list[psutil.Process]:
        """Wait until none is alive, and return those that still are after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (left := self.living()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def command_line(process: psutil.Process) -> str:
    """Return the command line of `process`, empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def described(processes: Iterable[psutil.Process]) -> list[str]:
    """Return a line on each of `processes`, for a failing test to show."""
    return [f"{process.pid} {command_line(process)[:120]}" for process in processes]
