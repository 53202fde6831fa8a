"""The `meta` of the JSON reports and run folders that the drafter's commands write. Knows nothing of their rows."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sparktier.drafter.files import write_json


def report_meta(command: str, seed: int) -> dict[str, Any]:
    """Return where, when and from what code a report comes."""
    return {
        "command": command,
        "version": version("sparktier"),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        "load_average": list(os.getloadavg()),
        "seed": seed,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_report(path: Path, meta: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `{"meta": ..., "rows": [...]}`."""
    write_json(path, {"meta": dict(meta), "rows": [dict(row) for row in rows]})


def _commit() -> str:
    """Return the checkout's commit, "" for an installed wheel."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip()
