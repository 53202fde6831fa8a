"""The files of the log of use: appended to by a thread of its own, with one fdatasync for all records that wait.

Each file begins with the requests that are still unsettled, so that the newest file is all that a restart reads. A disk
that takes no more loses records, which is counted and logged as an alarm; requests go on.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sparktier.configs.errors import ArtifactError
from sparktier.serving.gateway.usage_log.records import UsageRecord, latest, line_of, records_in

_NAME = "usage-{:013d}.jsonl"
FILES = "usage-*.jsonl"
_ALARM_INTERVAL_S = 30.0
_MOST_WAITING = 100_000
logger = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    record: UsageRecord
    kept: "asyncio.Future[None]"


class Journal:
    """The log in `folder`; `left` are the unsettled requests of the process before. `lost` counts records."""

    def __init__(self, folder: Path, *, max_file_bytes: int) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._lock = _locked(folder)
        files = sorted(folder.glob(FILES))
        self.left = _unsettled(files[-1]) if files else []
        self.lost = 0
        self._open = {record.engine_id: record for record in self.left}
        self._descriptor = -1
        self._bytes = 0
        self._alarmed_s = -_ALARM_INTERVAL_S
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="usage-log", daemon=True)
        self._thread.start()

    def add(self, record: UsageRecord) -> "asyncio.Future[None]":
        """Take `record`; the future is done once it is on the disk, or lost."""
        kept = asyncio.get_running_loop().create_future()
        if self._queue.qsize() >= _MOST_WAITING:
            self._lose(1, "the disk is too slow")
            kept.set_result(None)
        else:
            self._queue.put(_Waiting(record, kept))
        return kept

    def close(self) -> None:
        """Write what waits, and let another process have the log."""
        self._queue.put(None)
        self._thread.join()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        os.close(self._lock)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ends = [first], False
            with contextlib.suppress(queue.Empty):
                while not ends:
                    following = self._queue.get_nowait()
                    ends = following is None
                    if following is not None:
                        batch.append(following)
            self._commit([waiting.record for waiting in batch])
            for waiting in batch:
                _resolve(waiting.kept)
            if ends:
                return

    def _commit(self, records: Sequence[UsageRecord]) -> None:
        try:
            if self._descriptor < 0 or self._bytes >= self._max_file_bytes:
                self._begin_file()
            self._append(b"".join(map(line_of, records)))
        except OSError as error:
            self._lose(len(records), error.strerror or str(error))
        for record in records:
            if record.is_settled:
                self._open.pop(record.engine_id, None)
            else:
                self._open[record.engine_id] = record

    def _append(self, lines: bytes) -> None:
        """Append all of `lines` or nothing. Raises OSError where the disk takes no more."""
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fdatasync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._bytes)
            raise
        self._bytes += len(lines)

    def _begin_file(self) -> None:
        """Go on in a new file. Raises OSError where there is no room for one; the file before stays in use then."""
        newest = max((int(path.stem.removeprefix("usage-")) for path in self._folder.glob(FILES)), default=0)
        path = self._folder / _NAME.format(max(newest + 1, round(time.time() * 1000)))
        part = path.with_suffix(".part")
        lines = b"".join(map(line_of, self._open.values()))
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        before = self._descriptor, self._bytes
        self._descriptor, self._bytes = descriptor, 0
        try:
            self._append(lines)
            part.replace(path)
            _sync_folder(self._folder)
        except OSError:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            self._descriptor, self._bytes = before
            raise
        if before[0] >= 0:
            os.close(before[0])

    def _lose(self, records: int, why: str) -> None:
        self.lost += records
        if time.monotonic() - self._alarmed_s >= _ALARM_INTERVAL_S:
            self._alarmed_s = time.monotonic()
            logger.error(
                "usage.path: the log of use must have room in %s (found: %s). %d records are lost so far; requests go"
                " on. Free space there.",
                self._folder,
                why,
                self.lost,
            )


def _resolve(kept: "asyncio.Future[None]") -> None:
    def done() -> None:
        if not kept.done():
            kept.set_result(None)

    # The loop is closed where the process ends.
    with contextlib.suppress(RuntimeError):
        kept.get_loop().call_soon_threadsafe(done)


def _locked(folder: Path) -> int:
    """Make `folder` and lock it. Raises ArtifactError where another process has it, or it can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ArtifactError(f"usage.path: {folder} must be a folder to write to (found {error.strerror}).") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        message = f"usage.path: {folder} must be the log of one gateway (found another that runs). Name another folder."
        raise ArtifactError(message) from None
    return descriptor


def _unsettled(file: Path) -> list[UsageRecord]:
    with file.open("rb") as lines:
        return [record for record in latest(records_in(lines)).values() if not record.is_settled]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
