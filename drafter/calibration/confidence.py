"""Refits a trained confidence head on rounds of text that it was not trained on.

A head is well calibrated on the text that it was trained on. On other text its error depends on the text; a constant or
a temperature can't correct that, but the head's inputs can tell texts apart. So its weights are fitted by logistic
regression with a penalty on their change.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.calibration.samples import ConfidenceSamples, FitRows
from sparktier.drafter.data.arrays import Floats
from sparktier.drafter.model.heads import LinearHead

# How strongly weights are drawn back, strongest first: the penalty on a change of one nat by one spread of one input,
# beside the mean loss in nats. The one that predicts held-out answers best is taken.
RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
FOLDS = 4
# Keeps slope and constant finite where outcomes separate perfectly; far below any effect of real data.
LEAST_RIDGE = 1e-6


class Refit(NamedTuple):
    """The fitted head, the ridge that was taken, and the mean loss of a reached row on held-out answers of the head
    as it was, with no more than a slope and a constant fitted, and of the fitted one."""

    head: LinearHead
    ridge: float
    held_out_loss_before_nats: float
    held_out_loss_after_nats: float


def refit(head: LinearHead, samples: ConfidenceSamples) -> Refit:
    """Fit `head` to the samples: its logit times a slope, plus a constant and a small change of each weight.

    Raises:
        ArtifactError: fewer than `FOLDS` answers have rounds to fit on, too few to judge a fit by others.
    """
    rows = samples.reached()
    answers = len(np.unique(rows.answers))
    if answers < FOLDS:
        raise ArtifactError(
            f"calibration: at least {FOLDS} answers must be longer than a draft block (found {answers}). Give more "
            "prompts, or allow longer answers."
        )
    losses = np.zeros(1 + len(RIDGES))
    # Rounds of one answer are alike, so a whole answer is held out or none of it.
    folds = np.unique(rows.answers, return_inverse=True)[1] % FOLDS
    for fold in np.unique(folds):
        held_out = folds == fold
        fits = _fits(head, rows.only(~held_out), RIDGES)
        losses += [_loss(fit, rows.only(held_out)) * held_out.mean() for fit in fits]
    best = int(np.argmin(losses[1:]))
    fitted = _fits(head, rows, RIDGES[: best + 1])[-1]
    return Refit(fitted, RIDGES[best], float(losses[0]), float(losses[1 + best]))


def _fits(head: LinearHead, rows: FitRows, ridges: Sequence[float]) -> list[LinearHead]:
    """Return the head with only a slope and a constant fitted, then with its weights for each ridge, from strong to
    weak; each starts from the one before."""
    spread = rows.inputs.std(axis=0, dtype=np.float64)
    spread[spread == 0] = 1.0
    inputs, logits = rows.inputs / spread, head.logits(rows.inputs)
    shared = _minimised(np.array([1.0, 0.0]), logits, inputs[:, :0], rows.accepted, 0.0)
    steps = [np.concatenate((shared, np.zeros(len(spread))))]
    for ridge in ridges:
        steps.append(_minimised(steps[-1], logits, inputs, rows.accepted, ridge))
    return [
        LinearHead(head.weight * slope + np.array(change) / spread, float(head.bias * slope + constant))
        for slope, constant, *change in steps
    ]


def _minimised(start: Floats, logits: Floats, inputs: Floats, accepted: Floats, ridge: float) -> Floats:
    """Return slope, constant and the change of each weight, of the least penalised mean loss."""

    unchanged, strength = np.zeros(len(start)), np.full(len(start), ridge)
    unchanged[0], strength[:2] = 1.0, LEAST_RIDGE

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, constant, change = parameters[0], parameters[1], parameters[2:]
        z = logits * slope + constant + inputs @ change
        error = (expit(z) - accepted) / len(accepted)
        off = parameters - unchanged
        penalty = strength * off
        value = np.mean(np.logaddexp(0.0, z) - accepted * z) + penalty @ off
        return float(value), np.concatenate(([error @ logits, error.sum()], error @ inputs)) + 2 * penalty

    fitted: Floats = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return fitted


def _loss(head: LinearHead, rows: FitRows) -> float:
    z = head.logits(rows.inputs)
    return float(np.mean(np.logaddexp(0.0, z) - rows.accepted * z))
