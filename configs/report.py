"""Every JSON report: `{"meta": {...}, "rows": [flat objects]}`, where `meta` says when, where and by which code."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from sparktier.configs.files import write_json

_GIT_TIMEOUT_S = 10.0


class Meta(BaseModel):
    """What a figure needs beside it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    command: str
    version: str
    commit: str | None
    """None outside of a checkout, or where there is no git."""
    machine: str
    load_average: tuple[float, float, float]
    """Of the last 1, 5 and 15 minutes."""
    seed: int | None
    """None where nothing is random."""
    started_at: AwareDatetime


class UntimedMeta(BaseModel):
    """What is beside figures in virtual time, which no machine or hour changes: a second run writes the same bytes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    command: str
    version: str


class Report(BaseModel):
    """One report."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    meta: Meta | UntimedMeta
    rows: Sequence[Mapping[str, Any]]


def report_meta(command: str, seed: int | None) -> Meta:
    """Return the meta of a report that begins now."""
    return Meta(
        command=command,
        version=version("sparktier"),
        commit=_commit(),
        machine=f"{processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        load_average=os.getloadavg(),
        seed=seed,
        started_at=datetime.now(UTC).replace(microsecond=0),
    )


def untimed_meta(command: str) -> UntimedMeta:
    """Return the meta of a report in virtual time: its rows name their seeds and the digest of what they depend on."""
    return UntimedMeta(command=command, version=version("sparktier"))


def write_report(path: Path, meta: Meta | UntimedMeta, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace `path` by a report in one step. Raises ArtifactError when it can't be written."""
    write_json(path, Report(meta=meta, rows=[dict(row) for row in rows]).model_dump(mode="json"))


def _commit() -> str | None:
    # Asked for this folder too: a wheel may lie inside a repository of other things.
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD", "HEAD:./"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split()[0]


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
