"""Sequential Temperature Scaling of the confidence head, fitted on the product that the planner uses.

Row by row, the temperature that gives the running product of confidences the smallest ECE against "this row was reached
and accepted" (DSpark paper 3.4). A temperature scales logits around 0; `confidence.py` corrects the rest.
Owns the file that SGLang loads with --speculative-dspark-confidence-sts-path (`D/dspark_sts.py`).
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json, write_json
from sparktier.drafter.data.arrays import Floats
from sparktier.drafter.evaluation.metrics import ece_frac
from sparktier.drafter.evaluation.rounds import survival

STS_FILE = "sts.json"
COARSE = np.geomspace(0.1, 10.0, 41)
FINE_STEPS = 15


@dataclass(frozen=True)
class StsCalibration:
    """One temperature per row of a block (logit / temperature), and the ECE of the product before and after."""

    temperatures: tuple[float, ...]
    dataset: str
    num_samples: int
    ece_before: tuple[float, ...]
    ece_after: tuple[float, ...]


def fit_sts(logits: Floats, accepted: Floats, dataset: str) -> StsCalibration:
    """Fit temperatures from the left.

    Args:
        logits: [n, gamma] raw confidence logits.
        accepted: [n, gamma] 1 where this row and all before it were accepted.
        dataset: where the samples came from, for the file.
    """
    reached = np.ones(len(logits))
    temperatures, after = [], []
    for row in range(logits.shape[1]):
        best = _best(reached, logits[:, row], accepted[:, row], COARSE)
        step = COARSE[1] / COARSE[0]
        best = _best(reached, logits[:, row], accepted[:, row], np.geomspace(best / step, best * step, FINE_STEPS))
        reached = reached * expit(logits[:, row] / best)
        temperatures.append(float(best))
        after.append(ece_frac(reached, accepted[:, row]))
    raw = survival(logits, [1.0] * logits.shape[1])
    before = [ece_frac(raw[:, row], accepted[:, row]) for row in range(logits.shape[1])]
    return StsCalibration(tuple(temperatures), dataset, len(logits), tuple(before), tuple(after))


def _best(reached: Floats, logits: Floats, accepted: Floats, grid: Floats) -> float:
    errors = [ece_frac(reached * expit(logits / temperature), accepted) for temperature in grid]
    return float(grid[int(np.argmin(errors))])


def write_sts(path: Path, calibration: StsCalibration) -> None:
    """Write SGLang's STS file."""
    write_json(path, asdict(calibration))


def read_sts(path: Path, gamma: int) -> StsCalibration:
    """Read an STS file, written by us or by SGLang's fit tool.

    Raises:
        ArtifactError: the file is not an STS file, or does not have `gamma` positive temperatures.
    """
    raw = read_json(path, "an STS calibration")
    try:
        calibration = StsCalibration(
            temperatures=tuple(float(value) for value in raw["temperatures"]),
            dataset=str(raw.get("dataset", "")),
            num_samples=int(raw.get("num_samples", 0)),
            ece_before=tuple(float(value) for value in raw.get("ece_before", ())),
            ece_after=tuple(float(value) for value in raw.get("ece_after", ())),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(
            f"{path}: an STS calibration has `temperatures`, a list of numbers (found {error!r}). Calibrate again."
        ) from None
    finite = all(0 < temperature < math.inf for temperature in calibration.temperatures)
    if len(calibration.temperatures) != gamma or not finite:
        raise ArtifactError(
            f"{path}: temperatures must be {gamma} positive numbers (found {list(calibration.temperatures)}). "
            "Fit again for this drafter."
        )
    return calibration
