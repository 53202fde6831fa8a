"""Writing so that a crash or a full disk leaves the old state whole. Knows nothing of what is written."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sparktier.configs.errors import ArtifactError


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: the file is missing or is no JSON object; `what` says what it should have been.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: {what} was expected here (found nothing). Check the path.") from None
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
def staged(final: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `final` to write (a file, or a folder to make) and put it in place if all went well.

    Raises:
        ArtifactError: writing failed, as on a full disk; what was at `final` is untouched.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        yield part
        _flush(part)
        _swap(part, final)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{final}: can't be written ({error}). What was there is untouched; free space.") from error
    finally:
        _remove(part)


def _swap(part: Path, final: Path) -> None:
    if not final.is_dir():
        part.replace(final)
        return
    # A folder can't be renamed over another that holds files.
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    final.rename(old)
    part.rename(final)
    shutil.rmtree(old)


def _flush(path: Path) -> None:
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
