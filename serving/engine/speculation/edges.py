"""How likely the target takes an edge of a draft tree: the drafter's calibration where there is one, else its own q.

Knows nothing of engines.
"""

from pathlib import Path

import torch
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.calibrate import CHILDREN_FILE
from sparktier.drafter.checkpoint import WEIGHTS
from sparktier.drafter.child_calibration import COOL_BELOW, read_children, standing
from sparktier.drafter.files import sha256_of
from sparktier.kernels.expand import EdgeAcceptance

# A temperature of each class: greedy, cool, warm.
_OF_CLASS = (0.0, COOL_BELOW / 2, 1.0)


class EdgeTable:
    """Slope and intercept of logit(q) by temperature class; 1 and 0 where nothing was fitted."""

    def __init__(self, fits: list[tuple[float, float]], *, device: torch.device) -> None:
        self._fits = torch.tensor(fits, dtype=torch.float32, device=device)

    def of(self, temperatures: Tensor, *, greedy: Tensor) -> EdgeAcceptance:
        """Edges of a batch's requests: temperatures, greedy [batch]."""
        classes = torch.where(greedy, 0, torch.where(temperatures < COOL_BELOW, 1, 2))
        slope, intercept = (column.view(-1, 1, 1) for column in self._fits[classes].unbind(1))

        return lambda q, _depth: standing(q, slope, intercept)


def read_edges(draft: Path, *, device: torch.device) -> EdgeTable:
    """Return the table of the draft in folder `draft`; without a calibration file beside its weights, q stands.

    Raises:
        ArtifactError: the file is broken, or another drafter's.
    """
    file = draft / CHILDREN_FILE
    if not file.exists():
        return EdgeTable([(1.0, 0.0)] * len(_OF_CLASS), device=device)
    calibration = read_children(file, sha256_of(draft / WEIGHTS))
    fits = []
    for temperature in _OF_CLASS:
        try:
            fit = calibration.of("target_match", temperature)
        except ArtifactError:
            fits.append((1.0, 0.0))
        else:
            fits.append((fit.slope, fit.intercept))
    return EdgeTable(fits, device=device)


def slot_acceptance(q: Tensor, children: int) -> Tensor:
    """Chance of each draw's slot [batch, parents, children], from q [batch, parents, V] before anything was drawn.

    The chance that two draws from q agree stands for the chance that a draft and the target do.
    """
    agree = q.square().sum(dim=-1, keepdim=True)
    return agree * (1.0 - agree) ** torch.arange(children, device=q.device)
