"""Keeps a process alive when the disk has no room left for its metrics.

The Prometheus client maps files into memory and writes through the mapping. Where the disk has no block for a page of a
sparse file, that write is a SIGBUS, which ends the process. Here a file's blocks are allocated before it is mapped; if
that fails, the process counts in private memory and logs that its metrics are missing.
"""

import logging
import mmap
import os
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

_FIRST_BYTES = 1 << 16
# A value takes its key, the key's length, padding, the value and a time.
_ENTRY_BYTES = 64
logger = logging.getLogger(__name__)


def install() -> None:
    """Make the Prometheus client of this process use `MetricFile`."""
    values.MmapedDict = MetricFile  # type: ignore[attr-defined, misc]


class MetricFile(MmapedDict):
    """The Prometheus client's file of values, with its blocks allocated."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            if not read_mode:
                _reserve(Path(filename))
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        except OSError as error:
            _log_lost(filename, error)
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
        """Grow the file to `capacity` bytes, on the disk or in memory."""
        try:
            os.posix_fallocate(self._f.fileno(), 0, capacity)
        except OSError as error:
            _log_lost(self._fname, error)
            counted = self._m[:]
            self._f.close()
            self._f = os.fdopen(os.memfd_create("metrics"), "r+b")
            self._f.write(counted)
            self._f.truncate(capacity)
            self._f.flush()
        self._m = mmap.mmap(self._f.fileno(), capacity)
        self._capacity = capacity


def _reserve(path: Path) -> None:
    """Create the file and allocate all its blocks. Raises OSError if the disk is full."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, max(_FIRST_BYTES, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


def _log_lost(filename: str, error: OSError) -> None:
    """Remove the file, whose figures would no longer change, and log what is missing."""
    Path(filename).unlink(missing_ok=True)
    logger.error(
        "%s: metrics of process %d must have room there (found %s). They are missing on /metrics from now on, until "
        "the replica starts again. Free space there.",
        filename,
        os.getpid(),
        error.strerror,
    )
