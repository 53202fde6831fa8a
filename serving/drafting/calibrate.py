"""`sparktier calibrate`: fits a drafter's confidences and tree children on the calibration split."""

from pathlib import Path
from typing import Any

from rich.console import Console

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import require_room
from sparktier.configs.report import report_meta, write_report
from sparktier.configs.settings.settings import Settings
from sparktier.drafter.calibration.calibrate import calibrate
from sparktier.drafter.calibration.confidence import Refit
from sparktier.drafter.calibration.sts import StsCalibration
from sparktier.drafter.model.edge_calibration import ChildCalibrator
from sparktier.serving.drafting.sources import AnswerSelection, load_drafter, sources


def run(
    settings: Settings, *, draft: Path | None, selection: AnswerSelection, out: Path | None, report: Path | None
) -> int:
    """Calibrate a drafter; print how good the fits are and where the drafter was written.

    Args:
        settings: name the target, and the drafter where `draft` is None.
        draft: the folder of another drafter.
        selection: the answers to fit on, from the calibration split.
        out: a new folder for the calibrated drafter; None: the drafter's own folder.
        report: a JSON file for the figures of the fits.

    Raises:
        ConfigError, ArtifactError: an input is missing, corrupt, or belongs to another drafter or target.
    """
    meta, console = report_meta("calibrate", selection.seed), Console(stderr=True)
    if out:
        _require_new(out)
    drafter = load_drafter(settings, draft)
    folder = out or drafter.folder
    answers = list(sources(drafter, selection, console))
    console.print("fitting")
    fitted = calibrate(drafter.folder, drafter.target, answers, selection.seed, folder)
    rows = [_child_row(fit) for fit in fitted.children]
    if fitted.confidence is not None:
        rows = [_confidence_row(fitted.confidence.fit), *_sts_rows(fitted.confidence.sts), *rows]
    for row in rows:
        Console().print("  ".join(f"{name} {_shown(value)}" for name, value in row.items()), soft_wrap=True)
    Console().print(f"wrote {folder}", soft_wrap=True)
    if report:
        write_report(report, meta, rows)
    return 0


def _require_new(out: Path) -> None:
    """Raise ArtifactError unless a drafter can be written to `out`; checked before the work, not after it."""
    rule = "the calibrated drafter needs a new or empty folder that can be written"
    try:
        require_room(out)
        found = "files" if any(out.glob("*")) else ""
    except OSError as error:
        found = error.strerror or str(error)
    if found:
        raise ArtifactError(f"{out}: {rule} (found {found}). Give another.")


def _confidence_row(fit: Refit) -> dict[str, Any]:
    losses = {
        "held_out_loss_before_nats": fit.held_out_loss_before_nats,
        "held_out_loss_after_nats": fit.held_out_loss_after_nats,
    }
    return {"fit": "confidence", "ridge": fit.ridge, **losses}


def _sts_rows(fit: StsCalibration) -> list[dict[str, Any]]:
    return [
        {
            "fit": "sts",
            "row": row,
            "temperature": fit.temperatures[row - 1],
            "ece_before_frac": fit.ece_before[row - 1],
            "ece_after_frac": fit.ece_after[row - 1],
            "samples": fit.num_samples,
        }
        for row in range(1, len(fit.temperatures) + 1)
    ]


def _child_row(fit: ChildCalibrator) -> dict[str, Any]:
    return {"fit": "children", **fit.model_dump()}


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
