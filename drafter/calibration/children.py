"""How likely a tree's child stands, from the drafter's own probability of it, per accept rule and temperature class.

A deterministic child with draft probability q stands with about sigmoid(slope * logit(q) + intercept), fitted on
children whose parent was accepted (TreeSpark 2609.22098; the confidence head adds nothing there). Owns the versioned
file of these fits. Knows nothing of trees.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.optimize import minimize
from scipy.special import expit, logit
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json, write_json
from sparktier.drafter.data.arrays import Floats
from sparktier.drafter.evaluation.metrics import auc, ece_frac

AcceptRule = Literal["target_match", "drawn"]
TemperatureClass = Literal["greedy", "cool", "warm"]
COOL_BELOW = 0.7
# Draft probabilities of exactly 0 and 1 come from rounding; their logits must stay finite.
Q_MIN = 1e-6
# Keeps the fit finite when the children separate perfectly; far below any effect of real data.
RIDGE = 1e-6


class ChildCalibrator(BaseModel):
    """One fit: P(child stands | its parent stood) = sigmoid(slope * logit(q) + intercept)."""

    model_config = ConfigDict(frozen=True)

    accept_rule: AcceptRule
    temperature_class: TemperatureClass
    slope: float = Field(gt=0)
    intercept: float
    samples: int = Field(ge=0)
    ece_before_frac: float
    ece_after_frac: float
    auc: float

    def predict(self, q: Floats) -> Floats:
        """Return the chance of acceptance of children with draft probabilities `q` [...]."""
        chance: Floats = expit(self.slope * _logit(q) + self.intercept)
        return chance

    def edge_acceptance(self, q: Tensor, depth: int) -> Tensor:
        """Return the same for tensors, as `sparktier.kernels.expand` asks for it; the depth changes nothing."""
        del depth
        return standing(q, self.slope, self.intercept)


class ChildCalibration(BaseModel):
    """The file: every fit of one drafter (`draft_sha256` is its weights' digest)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    draft_sha256: str
    dataset: str
    fits: tuple[ChildCalibrator, ...] = Field(min_length=1)

    def of(self, rule: AcceptRule, temperature: float) -> ChildCalibrator:
        """Return the fit for a rule and a sampling temperature.

        Raises:
            ArtifactError: the file holds none.
        """
        wanted = temperature_class(temperature)
        for fit in self.fits:
            if (fit.accept_rule, fit.temperature_class) == (rule, wanted):
                return fit
        raise ArtifactError(
            f"child calibration for {self.dataset}: needs a fit for {rule} at {wanted} temperatures (found "
            f"{[(fit.accept_rule, fit.temperature_class) for fit in self.fits]}). Run `sparktier calibrate` for it."
        )


def standing(q: Tensor, slope: Tensor | float, intercept: Tensor | float) -> Tensor:
    """Return sigmoid(slope * logit(q) + intercept) for draft probabilities `q` [...], broadcast."""
    return torch.sigmoid(slope * torch.logit(q.float(), eps=Q_MIN) + intercept)


def temperature_class(temperature: float) -> TemperatureClass:
    """Return the class of a sampling temperature: 0, below 0.7, or above."""
    if temperature <= 0:
        return "greedy"
    return "cool" if temperature < COOL_BELOW else "warm"


def q_temperature(temperature: float) -> float:
    """Return the temperature of the softmax that q comes from: the request's own, 1 for greedy requests."""
    return temperature if temperature > 0 else 1.0


def fit_children(q: Floats, stood: Floats, rule: AcceptRule, temperature: float) -> ChildCalibrator:
    """Fit by logistic regression on n children whose parents stood.

    Args:
        q: [n] draft probability of each child, at `q_temperature(temperature)`.
        stood: [n] 1 where the child was accepted.
        rule: the accept rule the outcomes come from.
        temperature: the sampling temperature they come from.

    Raises:
        ArtifactError: the outcomes are all alike, or don't rise with q, so they can't come from a drafter that learned
            anything.
    """
    if not 0 < np.sum(stood) < len(stood):
        raise ArtifactError(
            f"child calibration: needs children that stand and others that don't (found {np.sum(stood):.0f} of "
            f"{len(stood)} that do). Give more answers."
        )
    x = _logit(q)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * x + parameters[1]
        value = np.mean(np.logaddexp(0.0, z) - stood * z) + RIDGE * parameters @ parameters
        error = expit(z) - stood
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
        ece_before_frac=ece_frac(q, stood),
        ece_after_frac=ece_frac(predicted, stood),
        auc=auc(q, stood),
    )


def write_children(path: Path, draft_sha256: str, dataset: str, fits: Sequence[ChildCalibrator]) -> None:
    """Write the file of all fits of a drafter."""
    calibration = ChildCalibration(draft_sha256=draft_sha256, dataset=dataset, fits=tuple(fits))
    write_json(path, calibration.model_dump(mode="json"))


def read_children(path: Path, draft_sha256: str) -> ChildCalibration:
    """Read the file and check that it belongs to the drafter with these weights.

    Raises:
        ArtifactError: it is broken, of another schema, or of another drafter.
    """
    try:
        calibration = ChildCalibration.model_validate(read_json(path, "a child calibration"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path}: {where}: {first['msg']} (found {first['input']!r:.80}). Calibrate again."
        ) from None
    if calibration.draft_sha256 != draft_sha256:
        raise ArtifactError(
            f"{path}: was fitted for the drafter {calibration.draft_sha256[:12]} (this one is {draft_sha256[:12]}). "
            "Calibrate again."
        )
    return calibration


def _logit(q: Floats) -> Floats:
    bounded: Floats = logit(np.clip(q, Q_MIN, 1.0 - Q_MIN))
    return bounded
