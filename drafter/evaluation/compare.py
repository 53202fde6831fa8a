"""Compares the accepted lengths of two drafters on the same answers by a paired bootstrap over answers."""

from dataclasses import dataclass

import numpy as np

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.arrays import Floats
from sparktier.drafter.evaluation.evaluate import Evaluation

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """`gain_frac` is how much longer the first drafter's accepted length is (0.08: 8%); the bounds are of 95%."""

    gain_frac: float
    low_frac: float
    high_frac: float
    answers: int


def compare(first: Evaluation, second: Evaluation, seed: int) -> Comparison:
    """Resample whole answers, the same ones for both drafters: rounds of one answer are not independent.

    Raises:
        ArtifactError: the two were not evaluated on the same answers.
    """
    a, b = _per_answer(first), _per_answer(second)
    if a.shape != b.shape or not np.array_equal(a[:, 0], b[:, 0]):
        raise ArtifactError(
            f"comparison of {first.drafter} and {second.drafter}: needs the same answers (found {len(a)} and {len(b)} "
            "answers, or others of the same number). Evaluate both on one store."
        )
    picks = np.random.default_rng(seed).integers(0, len(a), (RESAMPLES, len(a)))
    gains = _length(a[picks]) / _length(b[picks]) - 1.0
    low, high = np.percentile(gains, (2.5, 97.5))
    return Comparison(float(_length(a) / _length(b) - 1.0), float(low), float(high), len(a))


def _per_answer(evaluation: Evaluation) -> Floats:
    """Return [answers, 2]: tokens gained and rounds taken."""
    rounds = evaluation.rounds_by_answer()
    return np.array([[part.committed.sum(), len(part.committed)] for part in rounds], dtype=np.float64)


def _length(tokens_and_rounds: Floats) -> Floats:
    totals: Floats = tokens_and_rounds.sum(axis=-2)
    length: Floats = totals[..., 0] / totals[..., 1]
    return length
