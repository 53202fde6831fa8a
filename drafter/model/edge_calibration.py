"""Calibrated edges of a draft tree: P(child accepted | parent accepted), per accept rule and temperature class.

A deterministic child with draft probability q is accepted with about sigmoid(slope * logit(q) + intercept), given that
its parent was (TreeSpark 2609.22098; the confidence head adds nothing there). Owns the versioned file of these fits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json, write_json

CHILDREN_FILE = "children.json"
AcceptRule = Literal["target_match", "drawn"]
TemperatureClass = Literal["greedy", "cool", "warm"]
COOL_BELOW = 0.7
# Draft probabilities of exactly 0 and 1 come from rounding; their logits must stay finite.
Q_MIN = 1e-6


class ChildCalibrator(BaseModel):
    """One fit: P(child accepted | parent accepted) = sigmoid(slope * logit(q) + intercept)."""

    model_config = ConfigDict(frozen=True)

    accept_rule: AcceptRule
    temperature_class: TemperatureClass
    slope: float = Field(gt=0)
    intercept: float
    samples: int = Field(ge=0)
    ece_before_frac: float
    ece_after_frac: float
    auc: float

    def edge_acceptance(self, q: Tensor, depth: int) -> Tensor:
        """Return P(child accepted | parent accepted) for draft probabilities `q` [...]; the depth changes nothing."""
        del depth
        return edge_acceptance(q, self.slope, self.intercept)


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


def edge_acceptance(q: Tensor, slope: Tensor | float, intercept: Tensor | float) -> Tensor:
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
