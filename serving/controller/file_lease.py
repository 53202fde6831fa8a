"""A lease that is a locked file: the system frees it when its holder dies. The file's content is the last epoch."""

import fcntl
import os
from pathlib import Path
from typing import IO

FIRST_EPOCH = 2
"""Epoch 1 is that of operators, whose plans a controller's shut out."""


class FileLease:
    """The lease of the file at `path`, on this machine or a file system with locks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._epoch: int | None = None

    async def hold(self, *, above: int) -> int | None:
        """Take the lease, or see that it is still ours; return its epoch, or None while another has it."""
        if self._file is not None and not self._is_there(self._file):
            # The file was removed: others may hold a new one.
            await self.give_up()
        if self._epoch is None:
            self._epoch = self._taken(above)
        return self._epoch

    async def give_up(self) -> None:
        """Let another have it."""
        if self._file is not None:
            self._file.close()
        self._file = self._epoch = None

    def _taken(self, above: int) -> int | None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = open(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")  # noqa: SIM115
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = file.read().strip()
            epoch = max(FIRST_EPOCH, above + 1, int(text) + 1 if text.isdecimal() else FIRST_EPOCH)
            file.seek(0)
            file.write(f"{epoch}\n")
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.close()
            return None
        self._file = file
        return epoch

    def _is_there(self, file: IO[str]) -> bool:
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        ours = os.fstat(file.fileno())
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
