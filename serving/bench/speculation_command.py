"""Runs `sparktier bench speculation`: checks what was asked, starts the deployment, measures, and shows the outcome."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.report import report_meta, write_report
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import LADDERS
from sparktier.drafter.data.prompts import read_prompt_files
from sparktier.serving.bench.report import draw, show
from sparktier.serving.bench.rows import Case, Rows, rungs_of
from sparktier.serving.bench.speculation import Load, measure
from sparktier.serving.bench.target import deployed

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
    """Measure every rung that `settings` have, print a table, write `report` and a plot of it; return the exit status.

    Raises:
        ConfigError: the configuration has no ladder, or fewer users than a batch.
        ArtifactError: a prompt file is no prompt file.
        ReplicaError: the deployment did not start, or a request failed.
    """
    _require_ladder(settings, max(batches))
    texts = {name: [prompt.turns[0] for prompt in asked] for name, asked in read_prompt_files(prompts).items()}
    cases = [Case(batch, temperature, name) for name in texts for temperature in temperatures for batch in batches]
    rungs = rungs_of(settings.speculation.method)
    console = Console(stderr=True)
    meta = report_meta("bench speculation", load.seed)
    console.print(f"load average {meta.load_average[0]:.2f}; anything else running blurs what follows")

    def keep(rows: Rows) -> None:
        if report is not None:
            write_report(report, meta, rows)
            draw(rows, report.with_suffix(".png"))

    with deployed(config, overrides) as target:
        rows = measure(target, cases, rungs, texts, load, say=console.print, keep=keep)
    show(rows, Console(width=_TABLE_CHARACTERS) if not sys.stdout.isatty() else Console())
    return 0


def _require_ladder(settings: Settings, users: int) -> None:
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
