"""Fits P(child accepted | parent accepted) on the drafter's own probability of the child (`edge_calibration.py`)."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.arrays import Floats
from sparktier.drafter.evaluation.metrics import auc, ece_frac
from sparktier.drafter.model.edge_calibration import Q_MIN, AcceptRule, ChildCalibrator, temperature_class

# Keeps the fit finite when the children separate perfectly; far below any effect of real data.
RIDGE = 1e-6


def fit_children(q: Floats, accepted: Floats, rule: AcceptRule, temperature: float) -> ChildCalibrator:
    """Fit by logistic regression on n children whose parents were accepted.

    Args:
        q: [n] draft probability of each child, at `q_temperature(temperature)`.
        accepted: [n] 1 where the child was accepted.
        rule: the accept rule the outcomes come from.
        temperature: the sampling temperature they come from.

    Raises:
        ArtifactError: all outcomes are equal, or they don't rise with q, as those of a trained drafter do.
    """
    if not 0 < np.sum(accepted) < len(accepted):
        raise ArtifactError(
            f"child calibration: needs accepted and rejected children (found {np.sum(accepted):.0f} of "
            f"{len(accepted)} accepted). Give more answers."
        )
    x = _logit(q)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * x + parameters[1]
        value = np.mean(np.logaddexp(0.0, z) - accepted * z) + RIDGE * parameters @ parameters
        error = expit(z) - accepted
        gradient = np.array([np.mean(error * x), np.mean(error)]) + 2 * RIDGE * parameters
        return float(value), gradient

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    if slope <= 0:
        raise ArtifactError(
            f"child calibration: acceptance must rise with the draft probability (found slope {slope:.3f} over "
            f"{len(q)} children). Check that drafter and target belong together."
        )
    predicted = expit(slope * x + intercept)
    return ChildCalibrator(
        accept_rule=rule,
        temperature_class=temperature_class(temperature),
        slope=float(slope),
        intercept=float(intercept),
        samples=len(q),
        ece_before_frac=ece_frac(q, accepted),
        ece_after_frac=ece_frac(predicted, accepted),
        auc=auc(q, accepted),
    )


def _logit(q: Floats) -> Floats:
    bounded: Floats = logit(np.clip(q, Q_MIN, 1.0 - Q_MIN))
    return bounded
