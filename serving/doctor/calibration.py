"""Says which calibration of a drafter a replica would use: that of its tree's children, or of its confidences."""

from pathlib import Path

import torch

from sparktier.configs.settings.model import ModelSource, local_path, model_source
from sparktier.configs.settings.speculation import LADDERS, SpeculationSettings
from sparktier.drafter.calibration.sts import STS_FILE, read_sts
from sparktier.drafter.demo.location import demo_draft
from sparktier.serving.deployment.planner import draft_block
from sparktier.serving.engine.speculation.edge_acceptance import draft_file, read_edges


def calibration_in_force(speculation: SpeculationSettings) -> str:
    """Return a line on the calibration in force, beginning with `none` where there is none.

    Raises:
        ArtifactError: the file is broken, or another drafter's.
    """
    folder = _folder(speculation)
    if folder is None:
        return f"that of {speculation.draft_path}, if it has one; it is not on this machine, so SGLang will fetch it"
    if speculation.method in LADDERS:
        return read_edges(folder, device=torch.device("cpu")).calibration
    file = Path(speculation.calibration_path or folder / STS_FILE)
    if speculation.calibration_path is None and not file.exists():
        return f"none (no {file}); confidences are as trained"
    block = draft_block(str(folder))
    if block is None:
        return str(file)
    return f"{file} ({read_sts(file, block).dataset})"


def _folder(speculation: SpeculationSettings) -> Path | None:
    """The draft's folder; for a hub's draft its snapshot in the cache, None where there is none."""
    path = str(speculation.draft_path)
    if model_source(path) is ModelSource.DEMO:
        return demo_draft()
    if model_source(path) is ModelSource.LOCAL:
        return local_path(path)
    config = draft_file(path, "config.json", speculation.draft_revision, fetch=False)
    return None if config is None else config.parent
