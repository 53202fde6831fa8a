"""Offline evaluation of a drafter on stored answers: accepted length, calibration error, sweeps.

One row per seed as `sparktier evaluate` reports them. Teacher-forced on the target's own answers, so no engine runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from sparktier.drafter.data.arrays import Floats, Ints
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.evaluation.metrics import Reliability, auc, ece_frac, reliability
from sparktier.drafter.evaluation.replay import Replay, replay
from sparktier.drafter.evaluation.rounds import (
    Rounds,
    conditional_acceptance,
    confident_prefix,
    distinct_4gram_frac,
    joined,
    survival,
    walk,
)
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.training.schedule import mixed_seed

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
Row = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Evaluation:
    """One drafter on one dataset with one seed.

    `replays` has an entry per answer, `temperatures` is the applied STS, `confident`: there is a confidence head.
    """

    drafter: str
    dataset: str
    temperature: float
    seed: int
    replays: tuple[Replay, ...]
    distinct_4gram_frac: float
    temperatures: tuple[float, ...]
    confident: bool

    @property
    def gamma(self) -> int:
        """Return the rows of a block."""
        return len(self.temperatures)

    def rounds(self, longest: int | None = None) -> Rounds:
        """Return the rounds of decoding all answers, at most `longest` drafted tokens each."""
        return joined(self.rounds_by_answer(longest))

    def rounds_by_answer(self, longest: int | None = None) -> list[Rounds]:
        """Return the same rounds, answer by answer."""
        limit = self.gamma if longest is None else longest
        return [rounds_of(answer, all_rows(answer, limit)) for answer in self.replays]

    def row(self) -> Row:
        """Return the report's row: accepted length, calibration of the confidence, repetition in the text."""
        rounds = self.rounds()
        predicted, outcomes = (table.ravel() for table in self.predictions())
        by_row = conditional_acceptance(rounds)
        return {
            **self._names(),
            "accepted_length": rounds.accepted_length,
            "ece_frac": _known(ece_frac(predicted, outcomes)) if self.confident else None,
            "auc": _known(auc(predicted, outcomes)) if self.confident else None,
            "distinct_4gram_frac": self.distinct_4gram_frac,
            "answers": len(self.replays),
            "rounds": len(rounds.accepted),
            **{f"accept_{row + 1}_frac": _known(share) for row, share in enumerate(by_row)},
        }

    def _names(self) -> Row:
        return {
            "drafter": self.drafter,
            "dataset": self.dataset,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def predictions(self) -> tuple[Floats, Floats]:
        """Return predicted survival and outcome of each row of whole blocks, both [n, gamma]."""
        rounds = self.rounds().whole()
        return survival(rounds.confidence, self.temperatures), rounds.prefixes()

    def curves(self) -> list[Reliability]:
        """Return a reliability curve per row of the block."""
        predicted, outcomes = self.predictions()
        return [reliability(predicted[:, row], outcomes[:, row]) for row in range(self.gamma)]

    def length_sweep(self) -> list[Row]:
        """Return the accepted length when at most k drafted tokens are verified, for every k."""
        return [
            {**self._names(), "longest": k, "accepted_length": self.rounds(k).accepted_length}
            for k in range(1, self.gamma + 1)
        ]

    def confidence_sweep(self) -> list[Row]:
        """Return, per threshold on a row's confidence, accepted length and accepted share of verified drafts."""
        return [self._at_threshold(threshold) for threshold in THRESHOLDS]

    def _at_threshold(self, threshold: float) -> Row:
        scale = np.array(self.temperatures)
        walks = [rounds_of(answer, confident_prefix(expit(_raw(answer) / scale), threshold)) for answer in self.replays]
        rounds = joined(walks)
        share = float(rounds.accepted.sum() / max(rounds.offered.sum(), 1))
        lengths = {"accepted_length": rounds.accepted_length, "accept_rate_frac": share}
        return {**self._names(), "threshold": threshold, **lengths}


def evaluate(
    model: DraftModel,
    source: FeatureSource,
    drafter: str,
    seeds: Sequence[int],
    temperatures: Sequence[float] | None = None,
    done: Callable[[int], None] = lambda answers: None,
) -> list[Evaluation]:
    """Evaluate on every sequence of a source, once per seed (greedy answers have no randomness: the first seed only).

    Args:
        model: the drafter.
        source: answers and features; their temperature decides the accept rule (greedy or ratio rejection).
        drafter: its name for the report.
        seeds: of the accept rule's coins and the drafter's draws.
        temperatures: STS of the confidence head; none: as trained.
        done: called with the number of answers replayed so far.
    """
    spec, order = source.spec, range(len(source.lengths_tokens))
    used = seeds[:1] if spec.temperature <= 0 else seeds
    replays: dict[int, list[Replay]] = {seed: [] for seed in used}
    shares = []
    for index, record in zip(order, source.read(order), strict=True):
        shares.append(distinct_4gram_frac(record.token_ids[record.answer_mask].tolist()))
        for seed in used:
            replays[seed].append(replay(model, record, spec.temperature, mixed_seed(seed, index)))
        done(index + 1)
    scale = tuple(temperatures or [1.0] * model.config.block_size)
    return [
        Evaluation(
            drafter=drafter,
            dataset=spec.dataset,
            temperature=spec.temperature,
            seed=seed,
            replays=tuple(replays[seed]),
            distinct_4gram_frac=float(np.mean(shares)),
            temperatures=scale,
            confident=model.confidence_head is not None,
        )
        for seed in used
    ]


def rounds_of(answer: Replay, longest: Ints) -> Rounds:
    """Return the rounds of decoding one answer; `longest` [A] bounds the drafted tokens verified at each anchor."""
    anchors, accepted, remaining = (part.cpu().numpy() for part in (answer.anchors, answer.accepted, answer.remaining))
    return walk(anchors, accepted, remaining, _raw(answer), longest)


def _raw(answer: Replay) -> Floats:
    raw: Floats = answer.confidence.double().cpu().numpy()
    return raw


def all_rows(answer: Replay, longest: int) -> Ints:
    """Return the same bound for every anchor of an answer: [A]."""
    return np.full(len(answer.anchors), longest, dtype=np.int64)


def _known(value: float) -> float | None:
    """Return None for nan, which JSON lacks."""
    return None if np.isnan(value) else value
