"""The most memory that this process and all it started held at once, by a look every few seconds."""

import contextlib
import resource
import threading

import psutil

_EVERY_S = 5.0


class PeakMemory:
    """Looks until the process ends. Sums resident sizes, so memory that processes share counts in each."""

    def __init__(self) -> None:
        self._founder, self._peak_bytes = psutil.Process(), 0
        threading.Thread(target=self._watch, name="peak memory", daemon=True).start()

    def _watch(self) -> None:
        pause = threading.Event()  # not time.sleep, which tests replace
        while not pause.wait(_EVERY_S):
            with contextlib.suppress(OSError):
                self._look()

    def _look(self) -> None:
        held_bytes = 0
        for process in [self._founder, *self._founder.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                held_bytes += process.memory_info().rss
        self._peak_bytes = max(self._peak_bytes, held_bytes)

    def described(self) -> str:
        """Return a line for the end of the run. The kernel's own figure also knows what lived between two looks."""
        self._look()
        largest_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        peak_bytes = max(self._peak_bytes, largest_bytes)
        return (
            f"peak memory: {peak_bytes / 2**30:.1f} GiB in all processes, {largest_bytes / 2**30:.1f} GiB in one child"
        )
