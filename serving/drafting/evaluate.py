"""`sparktier evaluate`: a drafter's accepted length and calibration error on prompts or stored answers, as a report."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sparktier.configs.report import report_meta, write_report
from sparktier.configs.settings.settings import Settings
from sparktier.drafter.calibration.calibrate import STS_FILE
from sparktier.drafter.calibration.sts import read_sts
from sparktier.drafter.evaluation.evaluate import Evaluation, evaluate
from sparktier.drafter.evaluation.plots import write_figures
from sparktier.serving.drafting.sources import Subject, Wanted, counted, sources, subject

# Figures on the screen, by their heading.
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


def run(settings: Settings, *, draft: Path | None, wanted: Wanted, seeds: Sequence[int], report: Path | None) -> int:
    """Evaluate and show; with `report`, write it there and the figures into a folder beside it.

    Args:
        settings: name the target, and the drafter unless `draft` does.
        draft: another drafter's folder; its `sts.json`, if there, is applied.
        wanted: the answers.
        seeds: of coins and draws at temperatures above 0.
        report: a JSON file to write.

    Raises:
        ConfigError, ArtifactError: something named is missing, corrupt or belongs to something else.
    """
    # Taken first: started_at is when the work began.
    meta, console = report_meta("evaluate", wanted.seed), Console(stderr=True)
    who = subject(settings, draft)
    done = _evaluations(who, wanted, seeds, console)
    Console().print(_table(done))
    if report:
        write_report(report, meta, [evaluation.row() for evaluation in done])
        folder = report.with_suffix("") if report.suffix else report.with_name(f"{report.name}-figures")
        figures = write_figures(folder, done)
        console.print(f"{report} and {len(figures)} figures in {folder}", soft_wrap=True)
    return 0


def _evaluations(who: Subject, wanted: Wanted, seeds: Sequence[int], console: Console) -> list[Evaluation]:
    sts = who.folder / STS_FILE
    temperatures = read_sts(sts, who.model.config.block_size).temperatures if sts.exists() else None
    done = []
    for source in sources(who, wanted, console):
        label = f"{source.spec.dataset} T={source.spec.temperature:g}: replays"
        with counted(label, len(source.lengths_tokens), console) as (bar, task):
            done += evaluate(
                who.model,
                source,
                who.folder.name,
                seeds,
                temperatures,
                lambda answers: bar.update(task, completed=answers),
            )
    return done


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
