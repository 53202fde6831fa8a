"""Calibration and sharpness of predicted probabilities: ECE, AUC and the curve of a reliability diagram."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from sparktier.drafter.data.arrays import Floats

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Equal-mass bins of rising prediction: mean prediction, observed frequency and size of each."""

    predicted: Floats
    observed: Floats
    sizes: NDArray[np.int64]

    @property
    def ece_frac(self) -> float:
        """Return the expected calibration error, 0..1; nan without samples."""
        if not len(self.sizes):
            return float("nan")
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.sizes))


def reliability(predicted: Floats, outcomes: Floats, bins: int = BINS) -> Reliability:
    """Bin [n] predictions with their [n] outcomes (0 or 1) into equal shares of the samples.

    Bins have equal mass, not equal width as in SGLang's `dspark_sts_fit`, because bins with few samples are noise.
    """
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return Reliability(
        predicted=np.array([predicted[part].mean() for part in parts]),
        observed=np.array([outcomes[part].mean() for part in parts]),
        sizes=np.array([len(part) for part in parts]),
    )


def ece_frac(predicted: Floats, outcomes: Floats, bins: int = BINS) -> float:
    """Return the expected calibration error over equal-mass bins, 0..1."""
    return reliability(predicted, outcomes, bins).ece_frac


def auc(predicted: Floats, outcomes: Floats) -> float:
    """Return the chance that a random positive is ranked above a random negative, ties half; nan without both."""
    positives = outcomes > 0.5
    count, others = int(positives.sum()), int((~positives).sum())
    if not count or not others:
        return float("nan")
    ranks = rankdata(predicted)
    return float((ranks[positives].sum() - count * (count + 1) / 2) / (count * others))
