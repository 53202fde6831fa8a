"""A training run on disk: its settings (`run.json`), its metrics (`metrics.jsonl`) and checkpoints to resume from.

Every file is replaced in one step. Training state is safetensors and JSON, so that reading it executes no code.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json, sha256_of, staged, write_json
from sparktier.drafter.data.target import Binding
from sparktier.drafter.model.checkpoint import NOTE, save_draft
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.model.weights import WEIGHTS
from sparktier.drafter.training.train_settings import TrainSettings

STATE, STATE_NOTE, DRAFT = "state.safetensors", "state.json", "draft"
_OWN_FILES = {STATE, STATE_NOTE, *(f"{DRAFT}/{name}" for name in ("config.json", WEIGHTS, NOTE))}


@dataclass(frozen=True)
class TrainingState:
    """The state to resume from after `step` finished steps: fp32 weights and optimiser moments by name."""

    step: int
    tensors: dict[str, Tensor]


class TrainingRun:
    """The folder of one training run."""

    def __init__(self, folder: Path, keep_checkpoints: int) -> None:
        self.folder = folder
        self._keep = keep_checkpoints
        self._metrics = folder / "metrics.jsonl"
        self._checkpoints = folder / "checkpoints"

    def start(self, facts: Mapping[str, Any], settings: TrainSettings) -> None:
        """Write the settings of the run; refuse a folder that holds another run.

        Where answers come from is no part of them: an engine may have another address by now. Settings that an older
        version did not know had their defaults.

        Raises:
            ArtifactError: the folder was made with other settings.
        """
        path, now = self.folder / "run.json", _own(settings)
        if path.exists():
            before = read_json(path, "a run's description").get("settings")
            if not isinstance(before, dict):
                raise ArtifactError(f"{path}: must hold a run's settings (found {before!r:.60}). Use a new run_dir.")
            changed = _changes(_completed(before), now)
            if changed:
                raise ArtifactError(
                    f"{self.folder}: a run resumes with the settings it began with (found {', '.join(changed)}). Use a "
                    "new run_dir, or the settings in its run.json."
                )
            return
        write_json(path, {**facts, "settings": now})

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        try:
            with self._metrics.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
        except OSError as error:
            raise ArtifactError(f"{self._metrics}: can't be written ({error}). Free space and resume.") from error

    def rewind_metrics(self, step: int) -> None:
        """Drop rows after `step`, which a resumed run writes anew; a row cut by a crash goes too."""
        if not self._metrics.exists():
            return
        try:
            lines = self._metrics.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            raise ArtifactError(f"{self._metrics}: must be a file of metrics (found {error}). Move it away.") from None
        kept = [line for line in lines if _step_of(line) <= step]
        with staged(self._metrics) as part:
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def save(self, state: TrainingState, model: DraftModel, binding: Binding) -> Path:
        """Write a checkpoint, then drop the oldest beyond those to keep. Returns the draft's folder.

        Only what a run wrote is dropped: copies, and checkpoints with added files, are kept.
        """
        folder = self._checkpoints / f"step-{state.step:08d}"
        with staged(folder) as part:
            part.mkdir()
            save_draft(model, part / DRAFT, binding)
            save_file(state.tensors, part / STATE)
            write_json(part / STATE_NOTE, {"step": state.step, "sha256": sha256_of(part / STATE)})
        for old in [found for found in self._complete() if _is_untouched(found)][: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return folder / DRAFT

    def latest(self) -> TrainingState | None:
        """Return the state to resume from, or None in a fresh folder.

        Raises:
            ArtifactError: the newest checkpoint is corrupt.
        """
        folders = self._complete()
        if not folders:
            return None
        path = folders[-1] / STATE
        try:
            note = read_json(folders[-1] / STATE_NOTE, "a training state's note")
            if sha256_of(path) != note["sha256"]:
                raise ValueError("its digest differs from its note's")
            return TrainingState(step=_step_in(folders[-1].name) or 0, tensors=load_file(path))
        except (OSError, SafetensorError, KeyError, ValueError, ArtifactError) as error:
            raise ArtifactError(
                f"{path}: must be the training state that was written ({error}). Delete {folders[-1]} to resume from "
                "the checkpoint before it."
            ) from None

    def _complete(self) -> list[Path]:
        """Return the checkpoints, oldest first, without copies under another step's name."""
        if not self._checkpoints.is_dir():
            return []
        steps = {path: _step_in(path.name) for path in self._checkpoints.iterdir() if path.is_dir()}
        named = [path for path, step in steps.items() if step is not None and _noted_step(path) in (step, None)]
        return sorted(named, key=lambda path: steps[path] or 0)


def _own(settings: TrainSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"data"})


def _completed(before: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of an older run with the defaults of what it did not know; as they are if they are no more
    settings of a run."""
    try:
        return _own(TrainSettings.model_validate(before))
    except ValidationError:
        return before


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Return what differs, each as `key before, now after`; the keys of a shape one by one."""
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changes(old, new, f"{where}{key}.")
        elif old != new:
            found.append(f"{where}{key} {old!r:.60}, now {new!r:.60}")
    return found


def _step_in(name: str) -> int | None:
    """Return the step of a checkpoint folder's name, None for any other name."""
    found = re.fullmatch(r"step-(\d{8,})", name)
    return int(found[1]) if found else None


def _noted_step(folder: Path) -> int | None:
    """Return the step in a checkpoint's note, None without a readable note."""
    try:
        step = read_json(folder / STATE_NOTE, "a training state's note").get("step")
    except ArtifactError:
        return None
    return step if isinstance(step, int) else None


def _is_untouched(folder: Path) -> bool:
    """Return whether a run wrote this checkpoint and nothing was added to it since."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return files == _OWN_FILES and not folder.is_symlink() and _noted_step(folder) is not None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")
