"""Calibrating a drafter on stored answers: its confidences for chains, its children's probabilities for trees.

A calibrated drafter is the checkpoint, with the bias of its confidence head moved, and `sts.json` (SGLang's) and
`children.json` (ours) beside it. The answers must be of the calibration split. Knows nothing of the command line.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparktier.drafter.checkpoint import WEIGHTS, load_draft, shift_confidence
from sparktier.drafter.child_calibration import (
    ChildCalibrator,
    TemperatureClass,
    fit_children,
    temperature_class,
    write_children,
)
from sparktier.drafter.evaluate import child_samples, evaluate
from sparktier.drafter.features import FeatureSource
from sparktier.drafter.files import sha256_of, staged
from sparktier.drafter.model import DraftModel
from sparktier.drafter.rounds import joined
from sparktier.drafter.sts import StsCalibration, fit_shift, fit_sts, write_sts
from sparktier.drafter.target import Target

STS_FILE, CHILDREN_FILE = "sts.json", "children.json"


class Calibrated(NamedTuple):
    """What was fitted: the shift of the confidence head's bias and its temperatures (0 and None without a head), and
    the children of each temperature class."""

    shift: float
    sts: StsCalibration | None
    children: list[ChildCalibrator]


def calibrate(draft: Path, target: Target, sources: Sequence[FeatureSource], seed: int, folder: Path) -> Calibrated:
    """Fit the checkpoint `draft` and put it, calibrated, where `folder` is, in one step.

    Args:
        draft: the checkpoint's folder.
        target: its target.
        sources: stored answers of the calibration split. The confidence head, of which a drafter has only one, is
            fitted on the rounds of all of them; children get a fit for each temperature class among them.
        seed: of coins and draws.
        folder: `draft` itself, or one whose content may be replaced.

    Raises:
        ArtifactError: the checkpoint is not a draft of this target's, or can't be written.
    """
    model, name = load_draft(draft, target), "+".join(dict.fromkeys(source.spec.dataset for source in sources))
    for source in sources:
        target.binding.require(source.spec.binding, f"features {source.spec.dataset}")
    children = _children(model, sources)
    shift, sts = _confidences(model, sources, seed, name)
    with staged(folder) as part:
        shutil.copytree(draft, part)
        if sts is not None:
            shift_confidence(part, shift)
            write_sts(part / STS_FILE, sts)
        write_children(part / CHILDREN_FILE, sha256_of(part / WEIGHTS), name, children)
    return Calibrated(shift, sts, children)


def _children(model: DraftModel, sources: Sequence[FeatureSource]) -> list[ChildCalibrator]:
    by_class: dict[TemperatureClass, list[FeatureSource]] = {}
    for source in sources:
        by_class.setdefault(temperature_class(source.spec.temperature), []).append(source)
    fits = []
    for alike in by_class.values():
        q, stood = zip(*(child_samples(model, source) for source in alike), strict=True)
        fits.append(fit_children(np.concatenate(q), np.concatenate(stood), "target_match", alike[0].spec.temperature))
    return fits


def _confidences(
    model: DraftModel, sources: Sequence[FeatureSource], seed: int, name: str
) -> tuple[float, StsCalibration | None]:
    """The head's shift, and the temperatures after it; 0 and None without a head."""
    if model.confidence_head is None:
        return 0.0, None
    evaluations = [part for source in sources for part in evaluate(model, source, name, [seed])]
    rounds = joined([evaluation.rounds() for evaluation in evaluations]).whole()
    shift = fit_shift(rounds.confidence, rounds.prefixes())
    return shift, fit_sts(rounds.confidence + shift, rounds.prefixes(), name)
