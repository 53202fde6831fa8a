"""Calibrating a drafter on stored answers: its confidences for chains, its children's probabilities for trees.

Writes `sts.json` (SGLang's) and `children.json` (ours) beside each other. The answers must be of the calibration split.
Knows nothing of the command line.
"""

from collections.abc import Sequence
from pathlib import Path

from sparktier.drafter.checkpoint import WEIGHTS, load_draft
from sparktier.drafter.child_calibration import ChildCalibrator, fit_children, write_children
from sparktier.drafter.evaluate import child_samples, evaluate
from sparktier.drafter.features import FeatureSource
from sparktier.drafter.files import sha256_of
from sparktier.drafter.model import DraftModel
from sparktier.drafter.rounds import joined
from sparktier.drafter.sts import StsCalibration, fit_sts, write_sts
from sparktier.drafter.target import Target

STS_FILE, CHILDREN_FILE = "sts.json", "children.json"


def calibrate(
    draft: Path, target: Target, sources: Sequence[FeatureSource], seed: int, folder: Path
) -> tuple[StsCalibration | None, list[ChildCalibrator]]:
    """Fit and write both calibrations of the checkpoint `draft`.

    Args:
        draft: the checkpoint's folder.
        target: its target.
        sources: stored answers of the calibration split, one per temperature class. STS, of which a drafter has only
            one, is fitted on the rounds of all of them; children get a fit each.
        seed: of coins and draws.
        folder: where the files go.

    Returns:
        The STS fit (None without a confidence head) and the children's fits.
    """
    model, name = load_draft(draft, target), "+".join(source.spec.dataset for source in sources)
    for source in sources:
        target.binding.require(source.spec.binding, f"features {source.spec.dataset}")
    sts = None
    if model.confidence_head is not None:
        sts = _confidences(model, sources, seed, name)
        write_sts(folder / STS_FILE, sts)
    fits = [fit_children(*child_samples(model, source), "target_match", source.spec.temperature) for source in sources]
    write_children(folder / CHILDREN_FILE, sha256_of(draft / WEIGHTS), name, fits)
    return sts, fits


def _confidences(model: DraftModel, sources: Sequence[FeatureSource], seed: int, name: str) -> StsCalibration:
    evaluations = [part for source in sources for part in evaluate(model, source, name, [seed])]
    rounds = joined([evaluation.rounds() for evaluation in evaluations]).whole()
    return fit_sts(rounds.confidence, rounds.prefixes(), name)
