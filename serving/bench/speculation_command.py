"""Runs `sparktier bench speculation`: checks the request, starts the deployment, measures, and shows the report."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.report import report_meta, write_report
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import LADDERS
from sparktier.drafter.data.prompts import read_prompt_files
from sparktier.serving.bench.measured_replica import deployed
from sparktier.serving.bench.measurements import Case, ReportRows, rungs_of
from sparktier.serving.bench.output import print_table, write_plot
from sparktier.serving.bench.speculation import Load, measure

# A pipe has no width of its own, and rich would squeeze the table into 80 characters.
_TABLE_CHARACTERS = 150


def run(
    settings: Settings,
    *,
    config: Path,
    overrides: Sequence[str],
    batches: Sequence[int],
    temperatures: Sequence[float],
    prompts: Sequence[Path],
    load: Load,
    report: Path | None,
) -> int:
    """Measure every rung of `settings`, print a table, write `report` and a plot beside it; return the exit status.

    Raises:
        ConfigError: the configuration has no ladder, or holds fewer users than a batch.
        ArtifactError: a prompt file is broken.
        ReplicaError: the deployment did not start, or a request failed.
    """
    require_ladder(settings, max(batches))
    texts = {name: [prompt.turns[0] for prompt in asked] for name, asked in read_prompt_files(prompts).items()}
    cases = [Case(batch, temperature, name) for name in texts for temperature in temperatures for batch in batches]
    rungs = rungs_of(settings.speculation.method)
    console = Console(stderr=True)
    meta = report_meta("bench speculation", load.seed)
    console.print(f"load average {meta.load_average[0]:.2f}; other work on this machine blurs the figures")

    def save(rows: ReportRows) -> None:
        if report is not None:
            write_report(report, meta, rows)
            write_plot(rows, report.with_suffix(".png"))

    with deployed(config, overrides) as replica:
        rows = measure(replica, cases, rungs, texts, load, log=console.print, on_repeat=save)
    print_table(rows, Console(width=_TABLE_CHARACTERS) if not sys.stdout.isatty() else Console())
    return 0


def require_ladder(settings: Settings, users: int) -> None:
    """Raise ConfigError unless `settings` have a ladder and hold `users` at once."""
    speculation, most = settings.speculation, settings.replicas.max_running_requests
    problems = []
    if speculation.method not in LADDERS:
        rule = f"must be {' or '.join(LADDERS)} for a benchmark of its rungs"
        problems.append(Problem("speculation.method", rule, speculation.method, "Add --set speculation.method=tree."))
    if most is not None and most < users:
        rule = f"must hold the largest batch, {users}"
        problems.append(Problem("replicas.max_running_requests", rule, str(most), "Raise it, or measure less."))
    if problems:
        raise ConfigError(problems)
