"""Calibrates a drafter on stored answers: its confidences for chains, its children's probabilities for trees.

A calibrated drafter is the checkpoint with a refitted confidence head, and `sts.json` (SGLang's format) and
`children.json` (ours) beside it. The answers must come from the calibration split.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import staged
from sparktier.drafter.calibration.children import fit_children
from sparktier.drafter.calibration.confidence import FOLDS, Refit, refit
from sparktier.drafter.calibration.samples import child_samples, confidence_samples, joined_samples
from sparktier.drafter.calibration.sts import STS_FILE, StsCalibration, fit_sts, write_sts
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.data.target import Target
from sparktier.drafter.model.checkpoint import convert, load_draft, needs_conversion, replace_confidence, require_served
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.model.edge_calibration import (
    CHILDREN_FILE,
    ChildCalibrator,
    TemperatureClass,
    temperature_class,
    write_children,
)
from sparktier.drafter.model.heads import LinearHead
from sparktier.drafter.model.weights import weights_sha256

# A fit is judged on answers that it did not see.
LEAST_ANSWERS = FOLDS


class Confidence(NamedTuple):
    """The refitted confidence head, and the temperatures fitted after it."""

    fit: Refit
    sts: StsCalibration


class Calibrated(NamedTuple):
    """The fits: the confidence (None without a head), and the children of each temperature class."""

    confidence: Confidence | None
    children: list[ChildCalibrator]


def calibrate(
    draft: Path,
    target: Target,
    sources: Sequence[FeatureSource],
    seed: int,
    folder: Path,
    device: torch.device | None = None,
) -> Calibrated:
    """Calibrate the checkpoint `draft` and replace `folder` by the result in one step.

    Args:
        draft: the checkpoint's folder.
        target: its target.
        sources: stored answers of the calibration split. A drafter has one confidence head, which is fitted on the
            answers of the lowest temperature; children get a fit for each temperature class.
        seed: of coins and draws.
        folder: `draft` itself, or a folder whose content may be replaced.
        device: where the drafter is replayed; None: the CPU.

    Raises:
        ArtifactError: the checkpoint is no draft of this target or can't be written, or there are too few answers.
    """
    _require_enough(sources)
    require_served(draft)
    model = load_draft(draft, target).to(device)
    for source in sources:
        target.binding.require(source.spec.binding, f"features {source.spec.dataset}")
    children = _children(model, sources)
    confidence = _confidence(model, sources, seed)
    with staged(folder) as part:
        if needs_conversion(draft):
            convert(draft, target, part)
        else:
            shutil.copytree(draft, part)
        if confidence is not None:
            replace_confidence(part, confidence.fit.head)
            write_sts(part / STS_FILE, confidence.sts)
        write_children(part / CHILDREN_FILE, weights_sha256(part), _name(sources), children)
    return Calibrated(confidence, children)


def _require_enough(sources: Sequence[FeatureSource]) -> None:
    counts: Counter[TemperatureClass] = Counter()
    for source in sources:
        counts[temperature_class(source.spec.temperature)] += len(source.lengths_tokens)
    for kind, answers in counts.items():
        if answers < LEAST_ANSWERS:
            raise ArtifactError(
                f"calibration: needs at least {LEAST_ANSWERS} answers of each temperature class (found {answers} "
                f"{kind}). Give more prompts; a few hundred are enough."
            )


def _children(model: DraftModel, sources: Sequence[FeatureSource]) -> list[ChildCalibrator]:
    by_class: dict[TemperatureClass, list[FeatureSource]] = {}
    for source in sources:
        by_class.setdefault(temperature_class(source.spec.temperature), []).append(source)
    fits = []
    for alike in by_class.values():
        q, accepted = zip(*(child_samples(model, source) for source in alike), strict=True)
        fits.append(
            fit_children(np.concatenate(q), np.concatenate(accepted), "target_match", alike[0].spec.temperature)
        )
    return fits


def _confidence(model: DraftModel, sources: Sequence[FeatureSource], seed: int) -> Confidence | None:
    if model.confidence_head is None:
        return None
    # Sampled rounds are accepted less often than greedy ones of the same confidence: a mixture is right for neither.
    lowest = min(source.spec.temperature for source in sources)
    cold = [source for source in sources if source.spec.temperature == lowest]
    samples = joined_samples([confidence_samples(model, source, seed) for source in cold])
    old = model.confidence_head.proj
    fit = refit(LinearHead(old.weight[0].detach().double().cpu().numpy(), old.bias.item()), samples)
    return Confidence(fit, fit_sts(fit.head.logits(samples.inputs), samples.accepted, _name(cold)))


def _name(sources: Sequence[FeatureSource]) -> str:
    return "+".join(dict.fromkeys(source.spec.dataset for source in sources))
