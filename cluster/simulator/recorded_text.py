"""Texts recorded from a real model: the file of stored answers with the survivals of each draft and what came true."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparktier.cluster.arrays import Flags, Floats, Ints
from sparktier.cluster.simulator.answers import Answer
from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import staged

_FORM = 1


class Recorded(NamedTuple):
    """One answer under one way of drafting.

    survival [places, nodes], falling; came_true [places, nodes]: whether the node is accepted if it is verified with
    all before it.
    """

    survival: Floats
    came_true: Flags
    prompt_tokens: int
    dataset: str


class RecordedTexts:
    """Draws answers of a file, each as likely as the others."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers

    def answer(self, rng: np.random.Generator) -> Answer:
        """Draw an answer."""
        return self._answers[int(rng.integers(len(self._answers)))]


def write_recorded(path: Path, kinds: Mapping[str, Sequence[Recorded]], *, source: str) -> None:
    """Write answers by way of drafting, such as `chain5`. Raises ArtifactError when `path` can't be written."""
    arrays = {"form": np.array(_FORM), "source": np.array(source)}
    for kind, answers in kinds.items():
        arrays |= {
            f"{kind}.survival": np.concatenate([each.survival for each in answers]).astype(np.float32),
            f"{kind}.came_true": np.packbits(np.concatenate([each.came_true for each in answers]), axis=1),
            f"{kind}.places": np.array([len(each.survival) for each in answers], dtype=np.int32),
            f"{kind}.prompt_tokens": np.array([each.prompt_tokens for each in answers], dtype=np.int32),
            f"{kind}.dataset": np.array([each.dataset for each in answers]),
        }
    with staged(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_recorded(path: Path, kind: str) -> RecordedTexts:
    """Return the answers of a file under one way of drafting.

    Raises:
        ArtifactError: the file is missing, damaged or of another form, or doesn't have that way of drafting.
    """
    try:
        with np.load(path) as file:
            if int(file["form"]) != _FORM:
                raise _unusable(path, f"must have form {_FORM} (found {int(file['form'])})")
            kinds = sorted({name.partition(".")[0] for name in file.files if "." in name})
            if kind not in kinds:
                raise _unusable(path, f"must have drafts by {kind} (found {', '.join(kinds)})")
            parts = {name: file[f"{kind}.{name}"] for name in ("survival", "came_true", "places", "dataset")}
            prompts: Ints = file[f"{kind}.prompt_tokens"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _unusable(path, f"must be a file of recorded text (found {error})") from None
    nodes, ends = parts["survival"].shape[1], np.cumsum(parts["places"])[:-1]
    came_true = np.unpackbits(parts["came_true"], axis=1, count=nodes)
    accepted = np.concatenate((np.zeros((len(came_true), 1)), np.cumsum(came_true, axis=1)), axis=1).astype(np.int64)
    return RecordedTexts(
        [
            Answer(survival.astype(np.float64), counts, str(dataset), kind.startswith("chain"), int(prompt))
            for survival, counts, dataset, prompt in zip(
                np.split(parts["survival"], ends), np.split(accepted, ends), parts["dataset"], prompts, strict=True
            )
        ]
    )


def _unusable(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path}: {what}. Make it with `sparktier bench record`.")
