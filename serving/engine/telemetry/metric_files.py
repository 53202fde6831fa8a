"""Keeps a process alive whose metrics have no room on the disk any more.

The Prometheus client maps files into memory and writes through the mapping. A page of a sparse file that gets no block
is a SIGBUS, which ends the process. Here a file's blocks are there before it is mapped; where they can't be had the
process counts in memory that is read by nobody, and says so.
"""

import logging
import mmap
import os
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

_FIRST_BYTES = 1 << 16
# A value takes its key, that one's length, padding, the value and a time.
_ENTRY_BYTES = 64
logger = logging.getLogger(__name__)


def install() -> None:
    """Let this process keep its metrics in such files from now on."""
    values.MmapedDict = MetricFile  # type: ignore[attr-defined, misc]


class MetricFile(MmapedDict):
    """The Prometheus client's file of values, its blocks reserved."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            if not read_mode:
                _reserve(Path(filename))
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        except OSError as error:
            _say_lost(filename, error)
            descriptor = os.memfd_create("metrics")
            try:
                super().__init__(f"/proc/self/fd/{descriptor}", read_mode)  # type: ignore[no-untyped-call]
            finally:
                os.close(descriptor)

    def _init_value(self, key: str) -> None:
        room = self._used + len(key.encode()) + _ENTRY_BYTES
        capacity = self._capacity
        while capacity < room:
            capacity *= 2
        if capacity > self._capacity:
            self._grow(capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self, capacity: int) -> None:
        """Make room for `capacity` bytes, on the disk or in memory."""
        try:
            os.posix_fallocate(self._f.fileno(), 0, capacity)
        except OSError as error:
            _say_lost(self._fname, error)
            counted = self._m[:]
            self._f.close()
            self._f = os.fdopen(os.memfd_create("metrics"), "r+b")
            self._f.write(counted)
            self._f.truncate(capacity)
            self._f.flush()
        self._m = mmap.mmap(self._f.fileno(), capacity)
        self._capacity = capacity


def _reserve(path: Path) -> None:
    """Make the file, with blocks for all of it. Raises OSError, and leaves no new file, when there is no room."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, max(_FIRST_BYTES, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


def _say_lost(filename: str, error: OSError) -> None:
    """Take the file away, whose figures would stand still, and say what is missing."""
    Path(filename).unlink(missing_ok=True)
    logger.error(
        "%s: metrics of process %d must have room there (found %s). They are missing on /metrics from now on, until "
        "the replica starts again. Free space there.",
        filename,
        os.getpid(),
        error.strerror,
    )
