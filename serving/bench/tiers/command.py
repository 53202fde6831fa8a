"""Runs `sparktier bench tiers`: cells one after another, kept as they are done, then a report, a plot and a table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sparktier.configs.report import untimed_meta, write_report
from sparktier.serving.bench.kept_rows import KeptRows
from sparktier.serving.bench.tiers.grid import Engines, Rows, measured, simulated, units
from sparktier.serving.bench.tiers.plot import write_plot
from sparktier.serving.bench.tiers.settings import TiersSettings
from sparktier.serving.bench.tiers.worth import worth
from sparktier.serving.drafting.progress_bar import progress_bar

_COLUMNS = (
    "table",
    "users",
    "strict_frac",
    "promise_factor",
    "policy",
    "attainment_frac",
    "throughput_frac",
    "over_blind_points",
    "over_blind_half_points",
    "over_hull_points",
    "over_hull_half_points",
)
_TABLE_CHARACTERS = 170


def run(settings: TiersSettings, *, real: bool = False, report: Path | None, plot: Path | None) -> int:
    """Run every cell of `settings`, print what each policy is worth, and write what is asked for.

    Cells that are done are kept beside the report, so that an interrupted run goes on where it stopped. With `real`,
    SGLang and a model run in this process under the same clock, in place of the simulated engine.

    Raises:
        ConfigError: a policy is unknown, or not one of a real engine.
        ArtifactError: a text or table is damaged, or a file can't be written.
    """
    console = Console(stderr=True)
    kept = KeptRows(report)
    rows: Rows = []
    engines = real_engines(settings) if real else simulated
    with progress_bar("cells", len(units(settings)), console) as (bar, task):
        for unit, found in measured(settings, engines=engines, known=kept.known, keep=kept.keep):
            rows += found
            bar.advance(task)
            if not console.is_terminal:
                console.print(unit.name, highlight=False)
    compared = worth(rows)
    if report is not None:
        write_report(report, untimed_meta("bench tiers --engine" if real else "bench tiers"), rows)
    if plot is not None:
        write_plot(compared, plot)
    kept.forget()
    _print(compared)
    return 0


def real_engines(settings: TiersSettings) -> Engines:
    """Return the engines of `--engine`. Raises ConfigError where they can't run `settings`."""
    # Imported here: torch and SGLang take seconds, and a simulation needs neither.
    from sparktier.serving.bench.tiers.real_engines import RealEngines

    return RealEngines(settings)


def _print(compared: Sequence[dict[str, object]]) -> None:
    table = Table(*_COLUMNS)
    for row in compared:
        table.add_row(*("" if row.get(name) is None else str(row[name]) for name in _COLUMNS))
    console = Console()
    (console if console.is_terminal else Console(width=_TABLE_CHARACTERS)).print(table)
