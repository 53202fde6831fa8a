"""Runs `sparktier simulate`: cells one after another, kept as they are done, then a report, a plot and a table."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparktier.cluster.simulator.fleet.fleet_policies import fleet_policy
from sparktier.cluster.simulator.fleet.fleet_types import Offered
from sparktier.cluster.traffic.requests import Requests
from sparktier.cluster.traffic.trace_files import read_trace
from sparktier.configs.files import sha256_of
from sparktier.configs.report import untimed_meta, write_report
from sparktier.serving.bench.kept_rows import KeptRows
from sparktier.serving.bench.simulate.comparison import compared
from sparktier.serving.bench.simulate.plot import write_plot
from sparktier.serving.bench.simulate.scenario import REFUSED_BY_ENGINE, Cell, cell_rows, offered_of, spec_of
from sparktier.serving.bench.simulate.settings import SimulateSettings
from sparktier.serving.drafting.progress_bar import progress_bar

Rows = list[dict[str, Any]]
# Rises when the same settings give other figures.
_FORM = 1
_COLUMNS = (
    "load",
    "policy",
    "tier",
    "requests",
    "attainment_frac",
    "attained_tok_s_p50",
    "attained_tok_s_p5",
    "ttft_ms_p99",
    "goodput_tok_s",
    "throughput_tok_s",
    "refused",
)
_TABLE_CHARACTERS = 170


def run(settings: SimulateSettings, *, trace: Path, report: Path | None, plot: Path | None) -> int:
    """Run every cell, print what each policy gives each tier, and write what is asked for.

    Cells that are done are kept beside the report, so that an interrupted run goes on where it stopped.

    Raises:
        ConfigError: a policy is unknown.
        ArtifactError: the trace, a text or table is unusable, or a file can't be written.
    """
    console = Console(stderr=True)
    kept = KeptRows(report)
    rows: Rows = []
    with progress_bar("runs", len(cells(settings)), console) as (bar, task):
        for cell, found in simulated_cells(settings, trace, known=kept.known, keep=kept.keep):
            rows += found
            bar.advance(task)
            if not console.is_terminal:
                console.print(cell.name, highlight=False)
    if report is not None:
        write_report(report, untimed_meta("simulate"), rows)
    if plot is not None:
        write_plot(rows, plot)
    kept.forget()
    _print(rows)
    return 0


def cells(settings: SimulateSettings) -> list[Cell]:
    """Return every run, policies innermost: they share their requests."""
    return [
        Cell(load, policy, seed) for seed in settings.seeds for load in settings.loads for policy in settings.policies
    ]


def simulated_cells(
    settings: SimulateSettings, trace: Path, *, known: Mapping[str, Rows], keep: Callable[[str, Rows], None]
) -> Iterator[tuple[Cell, Rows]]:
    """Yield each cell with its rows; `known` are rows of an earlier run by key, `keep` is called with each new cell."""
    spec = spec_of(settings)
    for policy in settings.policies:
        fleet_policy(policy, spec.config)
    requests: Requests = read_trace(trace)
    digest = digest_of(settings, trace)

    @lru_cache(maxsize=1)
    def offered(load: float, seed: int) -> Sequence[Offered]:
        return offered_of(settings, requests, rate_s=load * settings.replicas, seed=seed)

    for cell in cells(settings):
        key = f"{digest} {cell.name}"
        rows = known.get(key)
        if rows is None:
            rows = cell_rows(settings, trace.name, cell, offered(cell.load, cell.seed))
            keep(key, rows)
        yield cell, rows


def digest_of(settings: SimulateSettings, trace: Path) -> str:
    """Return the digest of all that decides a cell's rows, which its name doesn't say."""
    parts = [
        _FORM,
        settings.model_dump(mode="json", exclude={"loads", "policies", "seeds"}),
        spec_of(settings).replica.times.table.model_dump(mode="json"),
        sha256_of(trace),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _print(rows: Rows) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=_TABLE_CHARACTERS)
    table = Table(*_COLUMNS, title="each tier, by load (requests/s a replica)")
    for row in rows:
        table.add_row(*("" if row.get(name) is None else str(row[name]) for name in _COLUMNS))
    console.print(table)
    comparison = compared(rows)
    if comparison:
        columns = tuple(comparison[0])
        worth = Table(*columns, title="sparktier beside each other policy, the same requests")
        for row in comparison:
            worth.add_row(*(str(row[name]) for name in columns))
        console.print(worth)
    if any(row["refused_by_engine"] for row in rows):
        console.print(f"Refused by the engine today: {REFUSED_BY_ENGINE}. These rows say what it would give.")
