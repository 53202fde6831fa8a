"""Sequential Temperature Scaling of the confidence head, fitted on the product that the planner uses.

A temperature turns around a logit of 0, so what is off by a constant is moved first, by the head's own bias. Then, row
by row, the temperature that gives the running product of confidences the smallest ECE against "this row was reached and
accepted" (DSpark paper 3.4). Owns the file that SGLang loads with --speculative-dspark-confidence-sts-path
(`D/dspark_sts.py`). Knows nothing of how samples are gathered.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.calibration_metrics import Floats, ece_frac
from sparktier.drafter.files import read_json, write_json

COARSE = np.geomspace(0.1, 10.0, 41)
FINE_STEPS = 15
MOST_SHIFT = 4.0  # a chance of one half becomes 2 or 98%
# Keeps the constant finite where outcomes separate perfectly; far below any effect of real data.
RIDGE = 1e-6


@dataclass(frozen=True)
class StsCalibration:
    """One temperature per row of a block (logit / temperature), and the ECE of the product before and after."""

    temperatures: tuple[float, ...]
    dataset: str
    num_samples: int
    ece_before: tuple[float, ...]
    ece_after: tuple[float, ...]


def survival(logits: Floats, temperatures: Iterable[float]) -> Floats:
    """Return the chance that each row is reached and accepted: [n, gamma] raw confidence logits -> [n, gamma]."""
    scaled: Floats = np.cumprod(expit(logits / np.fromiter(temperatures, dtype=np.float64)), axis=1)
    return scaled


def fit_shift(logits: Floats, accepted: Floats) -> float:
    """Return what must be added to every confidence logit before temperatures can make it right.

    The shared constant of the likeliest expit((logit + constant) / temperature of the row), over the rows that were
    reached. 0 where a row is accepted less often the surer the head is: no constant mends that.

    Args:
        logits: [n, gamma] raw confidence logits.
        accepted: [n, gamma] 1 where this row and all before it were accepted.
    """
    reached = np.concatenate((np.ones((len(accepted), 1)), accepted[:, :-1]), axis=1)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        shifted, slopes = logits + parameters[0], parameters[1:]
        z = shifted * slopes
        error = (expit(z) - accepted) * reached / reached.sum()
        value = np.sum((np.logaddexp(0.0, z) - accepted * z) * reached) / reached.sum()
        ridge = parameters - np.array([0.0] + [1.0] * len(slopes))
        gradient = np.concatenate(([np.sum(error * slopes)], np.sum(error * shifted, axis=0)))
        return float(value + RIDGE * ridge @ ridge), gradient + 2 * RIDGE * ridge

    shift, *slopes = minimize(loss, np.array([0.0] + [1.0] * logits.shape[1]), jac=True, method="BFGS").x
    return float(np.clip(shift, -MOST_SHIFT, MOST_SHIFT)) if min(slopes) > 0 else 0.0


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
    """Read SGLang's STS file, ours or one of its own fit tool.

    Raises:
        ArtifactError: it isn't one, or it has not `gamma` positive temperatures.
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
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: an STS calibration has `temperatures`, a list of numbers ({error!r}).") from None
    if len(calibration.temperatures) != gamma or min(calibration.temperatures) <= 0:
        raise ArtifactError(
            f"{path}: temperatures must be {gamma} positive numbers (found {list(calibration.temperatures)}). "
            "Fit again for this drafter."
        )
    return calibration
