"""Texts recorded from a real model: the file of stored answers with the survivals of each draft and what came true."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparktier.cluster.arrays import Flags, Floats, Ints
from sparktier.cluster.simulator.answers import Answer, TokenIds
from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import staged

_FORM = 2


class Drafts(NamedTuple):
    """What is drafted at each place of an answer.

    survival [places, nodes], falling; came_true [places, nodes]: whether the node is accepted if it is verified with
    all before it.
    """

    survival: Floats
    came_true: Flags


class Recorded(NamedTuple):
    """One answer with its prompt, and its drafts by way of drafting, such as `chain5`."""

    ids: TokenIds
    dataset: str
    drafts: Mapping[str, Drafts]


class RecordedTexts:
    """Draws answers of a file, each as likely as the others."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = answers

    def answer(self, rng: np.random.Generator) -> Answer:
        """Draw an answer."""
        return self.answers[int(rng.integers(len(self.answers)))]


def write_recorded(path: Path, answers: Sequence[Recorded], *, source: str) -> None:
    """Write answers that were all drafted in the same ways. Raises ArtifactError when `path` can't be written."""
    arrays: dict[str, Any] = {
        "form": np.array(_FORM),
        "source": np.array(source),
        "dataset": np.array([each.dataset for each in answers]),
    }
    for name in TokenIds._fields:
        ids = [getattr(each.ids, name) for each in answers]
        arrays |= {
            f"{name}_ids": np.concatenate(ids).astype(np.int32),
            f"{name}_tokens": np.array(list(map(len, ids)), dtype=np.int32),
        }
    for kind in answers[0].drafts:
        drafts = [each.drafts[kind] for each in answers]
        arrays |= {
            f"{kind}.survival": np.concatenate([each.survival for each in drafts]).astype(np.float32),
            f"{kind}.came_true": np.packbits(np.concatenate([each.came_true for each in drafts]), axis=1),
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
            prompts, texts = (_split(file[f"{name}_ids"], file[f"{name}_tokens"]) for name in TokenIds._fields)
            places: Ints = file["answer_tokens"] - 1
            survival, packed, datasets = file[f"{kind}.survival"], file[f"{kind}.came_true"], file["dataset"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _unusable(path, f"must be a file of recorded text (found {error})") from None
    came_true = np.unpackbits(packed, axis=1, count=survival.shape[1])
    accepted = np.concatenate((np.zeros((len(came_true), 1)), np.cumsum(came_true, axis=1)), axis=1).astype(np.int64)
    drafts = zip(_split(survival.astype(np.float64), places), _split(accepted, places), strict=True)
    return RecordedTexts(
        [
            Answer(chances, counts, str(dataset), kind.startswith("chain"), TokenIds(tuple(prompt), tuple(text)))
            for (chances, counts), dataset, prompt, text in zip(drafts, datasets, prompts, texts, strict=True)
        ]
    )


def _split(rows: Any, counts: Ints) -> list[Any]:
    """The rows of each answer; those of token ids as plain numbers."""
    parts = np.split(rows, np.cumsum(counts)[:-1])
    return [part.tolist() for part in parts] if rows.ndim == 1 else parts


def _unusable(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path}: {what}. Make it with `sparktier bench record`.")
