"""Writes files so that a crash or a full disk leaves the old state whole."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sparktier.configs.errors import ArtifactError

# As much as the smallest block of a file system: a full disk still makes empty files.
_PROBE_BYTES = 4096


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's bytes. Raises ArtifactError when it can't be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: must be readable (found {error.strerror}). Check the path.") from None


def file_mark(path: Path) -> tuple[int, int, int, int] | None:
    """Return what tells this file from the one before; links are followed, as a ConfigMap changes by one of them."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: the file is missing or is no JSON object; `what` says what it should have been.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: {what} was expected here (found nothing). Check the path.") from None
    except RecursionError:
        raise ArtifactError(
            f"{path}: {what} must not nest this deep (found brackets in brackets). Restore it."
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: {what} must be readable JSON ({error}). Restore or rewrite the file.") from None
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path}: {what} must be a JSON object (found {type(raw).__name__}). Rewrite the file.")
    return raw


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace `path` in one step."""
    with staged(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def staged(final: Path, *, cure: str = "free space there, or name another place") -> Iterator[Path]:
    """Yield a temporary sibling of `final` to write (a file, or a folder to make) and put it in place if all went well.

    A link is followed: what it leads to is replaced.

    Raises:
        ArtifactError: writing failed, as on a full disk; what was at `final` is untouched.
    """
    final = _replaceable(final)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _flush(part)
        _swap(part, final)
        _flush_name(final)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{final}: must be a place that can be written (found {error}). What was there is untouched; {cure}."
        ) from error
    finally:
        _remove(part)


def require_room(folder: Path) -> None:
    """Raise OSError unless a file can be made in `folder`, made too if need be. Leaves nothing behind."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        probe.write(bytes(_PROBE_BYTES))


def _replaceable(path: Path) -> Path:
    """Return where `path` leads. Raises ArtifactError for a device or a pipe, which a rename would take away."""
    try:
        final = path.resolve()
        special = final.exists() and not (final.is_file() or final.is_dir())
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"{path}: must be a path that can be written (found {error}). Name another.") from None
    if special:
        raise ArtifactError(f"{path}: must be a file or a folder (found a device or a pipe). Name another.")
    return final


def _swap(part: Path, final: Path) -> None:
    if not final.is_dir():
        part.replace(final)
        return
    # A folder can't be renamed over another that holds files.
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    final.rename(old)
    try:
        part.rename(final)
    except OSError:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        _flush_one(file)


def _flush_name(final: Path) -> None:
    """Keep a power loss from taking the new name back. Not every file system can, and what is there is whole."""
    with contextlib.suppress(OSError):
        _flush_one(final.parent)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
