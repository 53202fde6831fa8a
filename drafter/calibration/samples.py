"""The samples that calibration is fitted on: confidences and children of a drafter replayed on stored answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparktier.drafter.data.arrays import Floats
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.evaluation.evaluate import all_rows, rounds_of
from sparktier.drafter.evaluation.replay import likeliest_children, replay_with_inputs
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.training.schedule import mixed_seed


class FitRows(NamedTuple):
    """Rows to fit on: inputs [n, width], accepted [n], and the answer [n] that each row belongs to."""

    inputs: NDArray[np.float32]
    accepted: Floats
    answers: NDArray[np.int64]

    def only(self, kept: NDArray[np.bool_]) -> "FitRows":
        """Return the rows where `kept` [n]."""
        return FitRows(self.inputs[kept], self.accepted[kept], self.answers[kept])


@dataclass(frozen=True)
class ConfidenceSamples:
    """Rounds to fit on: inputs [n, gamma, width] that the head read, accepted [n, gamma] 1 where this row and all
    before it were accepted, answers [n] which answer a round is of."""

    inputs: NDArray[np.float32]
    accepted: Floats
    answers: NDArray[np.int64]

    def reached(self) -> "FitRows":
        """Return the rows whose predecessors were all accepted: only their outcome was observed."""
        kept = np.concatenate((np.ones((len(self.accepted), 1)), self.accepted[:, :-1]), axis=1) > 0
        of_round = np.broadcast_to(self.answers[:, None], kept.shape)
        return FitRows(self.inputs[kept], self.accepted[kept], of_round[kept])


def joined_samples(parts: Sequence[ConfidenceSamples]) -> ConfidenceSamples:
    """Return all rounds of several answers or sources, in which no two parts share an answer."""
    answers, first = [], 0
    for part in parts:
        answers.append(part.answers + first)
        first = int(answers[-1].max(initial=first - 1)) + 1
    return ConfidenceSamples(
        inputs=np.concatenate([part.inputs for part in parts]),
        accepted=np.concatenate([part.accepted for part in parts]),
        answers=np.concatenate(answers),
    )


def confidence_samples(model: DraftModel, source: FeatureSource, seed: int) -> ConfidenceSamples:
    """Return the inputs of the confidence head in whole rounds of a source, with the outcomes."""
    gamma, order, parts = model.config.block_size, range(len(source.lengths_tokens)), []
    for index, record in zip(order, source.read(order), strict=True):
        answer, inputs = replay_with_inputs(model, record, source.spec.temperature, mixed_seed(seed, index))
        rounds = rounds_of(answer, all_rows(answer, gamma)).whole()
        taken = inputs[torch.from_numpy(rounds.places).to(inputs.device)].float().cpu().numpy()
        parts.append(ConfidenceSamples(taken, rounds.prefixes(), np.zeros(len(taken), dtype=np.int64)))
    return joined_samples(parts)


def child_samples(model: DraftModel, source: FeatureSource) -> tuple[Floats, Floats]:
    """Return q of every likely child in a source, and whether it was accepted."""
    order = range(len(source.lengths_tokens))
    parts = [likeliest_children(model, record, source.spec.temperature) for record in source.read(order)]
    q, accepted = torch.cat([part.q for part in parts]), torch.cat([part.accepted for part in parts])
    return q.double().cpu().numpy(), accepted.double().cpu().numpy()
