"""`sparktier evaluate`: a drafter's accepted length and calibration error on prompts or stored answers, as a report."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sparktier.configs.report import report_meta, write_report
from sparktier.configs.settings.settings import Settings
from sparktier.drafter.calibration.sts import STS_FILE, read_sts
from sparktier.drafter.evaluation.evaluate import Evaluation, evaluate
from sparktier.drafter.evaluation.plots import write_figures
from sparktier.serving.drafting.progress_bar import progress_bar
from sparktier.serving.drafting.sources import AnswerSelection, LoadedDrafter, load_drafter, sources

# Columns of the table, by heading.
SHOWN = {
    "dataset": "dataset",
    "T": "temperature",
    "seed": "seed",
    "accepted": "accepted_length",
    "AUC": "auc",
    "ECE": "ece_frac",
    "4-gram": "distinct_4gram_frac",
    "answers": "answers",
}


def run(
    settings: Settings, *, draft: Path | None, selection: AnswerSelection, seeds: Sequence[int], report: Path | None
) -> int:
    """Evaluate a drafter and print a table; with `report`, write the report and a folder of plots beside it.

    Args:
        settings: name the target, and the drafter where `draft` is None.
        draft: the folder of another drafter; its `sts.json` is applied where there is one.
        selection: the answers to replay.
        seeds: seeds of coins and draws at temperatures above 0.
        report: a JSON file to write.

    Raises:
        ConfigError, ArtifactError: an input is missing, corrupt, or belongs to another drafter or target.
    """
    # Before the work, because it notes when the work began.
    meta, console = report_meta("evaluate", selection.seed), Console(stderr=True)
    drafter = load_drafter(settings, draft)
    evaluations = _evaluations(drafter, selection, seeds, console)
    Console().print(_table(evaluations))
    if report:
        write_report(report, meta, [evaluation.row() for evaluation in evaluations])
        folder = report.with_suffix("") if report.suffix else report.with_name(f"{report.name}-figures")
        figures = write_figures(folder, evaluations)
        console.print(f"{report} and {len(figures)} figures in {folder}", soft_wrap=True)
    return 0


def _evaluations(
    drafter: LoadedDrafter, selection: AnswerSelection, seeds: Sequence[int], console: Console
) -> list[Evaluation]:
    sts = drafter.folder / STS_FILE
    temperatures = read_sts(sts, drafter.model.config.block_size).temperatures if sts.exists() else None
    evaluations = []
    for source in sources(drafter, selection, console):
        label = f"{source.spec.dataset} T={source.spec.temperature:g}: replays"
        with progress_bar(label, len(source.lengths_tokens), console) as (bar, task):
            evaluations += evaluate(
                drafter.model,
                source,
                drafter.folder.name,
                seeds,
                temperatures,
                lambda answers: bar.update(task, completed=answers),
            )
    return evaluations


def _table(evaluations: Sequence[Evaluation]) -> Table:
    table = Table(*SHOWN)
    for evaluation in evaluations:
        row = evaluation.row()
        table.add_row(*(_shown(row[name]) for name in SHOWN.values()))
    return table


def _shown(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
