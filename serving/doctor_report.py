"""Shows what the doctor found, and a plan, as tables and as JSON. Knows nothing of how either came about."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparktier.configs.errors import ConfigError, Problem
from sparktier.serving.deployment_plan import DeploymentPlan, Row
from sparktier.serving.doctor import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print a table with a line for each finding."""
    table = Table("check", "")
    for name in ("found", "cure"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.status]
        table.add_row(finding.check, f"[{colour}]{finding.status}[/]", _plain(finding.found), _plain(finding.cure))
    console.print(table)


def show_plan(plan: DeploymentPlan, console: Console) -> None:
    """Print a table for each section of `plan`, refusals last."""
    rows = (*plan.rows, *plan.refusals)
    for section in dict.fromkeys(row.section for row in rows):
        table = Table(title=section, title_justify="left", show_header=False)
        for row in rows:
            if row.section == section:
                table.add_row(row.name, _value(row), _plain(row.note))
        console.print(table)
    if not plan.refusals:
        console.print("Nothing is refused. Every figure here is computed, none was measured on a GPU.")


def write_json(path: Path, rows: Sequence[Finding | Row], *, command: str, started_at: datetime) -> None:
    """Write `rows` to `path` in the form of every report of ours: `{"meta": ..., "rows": [...]}`.

    Raises:
        ConfigError: `path` can't be written.
    """
    report = {"meta": _meta(command, started_at), "rows": [asdict(row) for row in rows]}
    try:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        problem = Problem("--json", "must be a file that can be written", f"{path}: {error.strerror}", "Name another.")
        raise ConfigError([problem]) from error


def _meta(command: str, started_at: datetime) -> Mapping[str, Any]:
    return {
        "command": command,
        "version": importlib.metadata.version("sparktier"),
        "commit": _commit(),
        "machine": f"{platform.machine()} {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "load_average": os.getloadavg()[0],
        "seed": None,
        "started_at": started_at.astimezone(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Return the commit of the checkout this runs from, or None outside of one."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _value(row: Row) -> str:
    return (
        f"{row.value:,}" if isinstance(row.value, int) and not isinstance(row.value, bool) else _plain(str(row.value))
    )


def _plain(text: str) -> str:
    """Return `text` so that the console takes none of it for markup."""
    return text.replace("[", r"\[")
