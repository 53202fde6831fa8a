"""What a report says of where it was made; torch alone is needed."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[3]


def meta() -> dict[str, Any]:
    """Return device, versions and commit: what must be the same for figures to lie in one file."""
    return {
        "device": _device(),
        "host": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "torch": torch.__version__,
        "sglang": _version("sglang"),
        "flashinfer": _version("flashinfer-python"),
        "commit": _commit(),
    }


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    facts = torch.cuda.get_device_properties(0)
    return f"{facts.name}, sm_{facts.major}{facts.minor}, {facts.total_memory / 2**30:.0f} GiB"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
