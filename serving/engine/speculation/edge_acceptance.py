"""P(child accepted | parent accepted) in a draft tree: by the drafter's calibration if it has one, else its own q."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file

from sparktier.drafter.model.edge_calibration import (
    CHILDREN_FILE,
    COOL_BELOW,
    ChildCalibration,
    ChildCalibrator,
    TemperatureClass,
    edge_acceptance,
    read_children,
)
from sparktier.drafter.model.weights import weights_sha256
from sparktier.kernels.expand import EdgeAcceptance

# By class, the fits to take in this order. Both sampled classes read q at the request's own temperature, so one
# replaces the other before the greedy class does, whose q is of temperature 1.
_NEAREST: dict[TemperatureClass, tuple[TemperatureClass, ...]] = {
    "greedy": ("greedy", "cool", "warm"),
    "cool": ("cool", "warm", "greedy"),
    "warm": ("warm", "cool", "greedy"),
}


class EdgeTable:
    """Slope and intercept of logit(q) for greedy, cool and warm requests; 1 and 0 where nothing was fitted.

    `calibration` says in words what is in force.
    """

    def __init__(self, fits: list[tuple[float, float]], *, device: torch.device, calibration: str = "none") -> None:
        self._fits = torch.tensor(fits, dtype=torch.float32, device=device)
        self.calibration = calibration

    def of(self, temperatures: Tensor, *, greedy: Tensor) -> EdgeAcceptance:
        """Edges of a batch's requests: temperatures, greedy [batch]."""
        classes = torch.where(greedy, 0, torch.where(temperatures < COOL_BELOW, 1, 2))
        slope, intercept = (column.view(-1, 1, 1) for column in self._fits[classes].unbind(1))

        return lambda q, _depth: edge_acceptance(q, slope, intercept)


def draft_folder(server_args: Any) -> Path:
    """Return the folder with the draft of SGLang's `server_args`: for a hub's, that of its revision in the cache.

    SGLang fetches weights and configs alone, so a calibration beside them is fetched here, if there is one.
    """
    path, revision = str(server_args.speculative_draft_model_path), server_args.speculative_draft_model_revision
    config = draft_file(path, "config.json", revision)
    if config is None:
        return Path(path)
    # The very commit whose weights were loaded, should the hub have moved on.
    in_cache = config.parent.parent.name == "snapshots"
    draft_file(path, CHILDREN_FILE, config.parent.name if in_cache else revision)
    return config.parent


def draft_file(path: str, name: str, revision: str | None, *, fetch: bool = True) -> Path | None:
    """Return the file `name` of a draft: a folder, or a hub id, from whose snapshot here or (`fetch`) the hub it comes.

    None where it has no such file.
    """
    found = cached_file(
        path,
        name,
        revision=revision,
        local_files_only=not fetch,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def read_edges(draft: Path, *, device: torch.device) -> EdgeTable:
    """Return the table of the draft in folder `draft`; without a calibration file beside its weights, q itself is used.

    Raises:
        ArtifactError: the file is broken, or another drafter's.
    """
    file = draft / CHILDREN_FILE
    if not file.exists():
        return EdgeTable([(1.0, 0.0)] * 3, device=device, calibration=f"none (no {file}); q itself is used")
    calibration = read_children(file, weights_sha256(draft))
    fits = {kind: _nearest(calibration, kind) for kind in _NEAREST}
    numbers = [(fit.slope, fit.intercept) if fit else (1.0, 0.0) for fit in fits.values()]
    words = ", ".join(f"{kind} by {fit.temperature_class if fit else 'q itself'}" for kind, fit in fits.items())
    return EdgeTable(numbers, device=device, calibration=f"{file} ({calibration.dataset}): {words}")


def _nearest(calibration: ChildCalibration, kind: TemperatureClass) -> ChildCalibrator | None:
    fits = {fit.temperature_class: fit for fit in calibration.fits if fit.accept_rule == "target_match"}
    return next((fits[near] for near in _NEAREST[kind] if near in fits), None)


def slot_acceptance(q: Tensor, children: int) -> Tensor:
    """Chance of each draw's slot [batch, parents, children], from q [batch, parents, V] before anything was drawn.

    The chance that two draws from q agree is taken for the chance that a draft and the target do.
    """
    agree = q.square().sum(dim=-1, keepdim=True)
    return agree * (1.0 - agree) ** torch.arange(children, device=q.device)
