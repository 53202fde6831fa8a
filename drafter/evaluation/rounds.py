"""The rounds that decoding takes, given the acceptances at every anchor, and their statistics."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from sparktier.drafter.data.arrays import Floats, Ints


@dataclass(frozen=True)
class Rounds:
    """Rounds of decoding: places [n] of their anchors among the answer's; accepted [n] number of accepted drafts;
    offered [n] rows before the answer ended; committed [n] tokens gained, bonus included; confidence [n, gamma] raw
    logits."""

    places: Ints
    accepted: Ints
    offered: Ints
    committed: Ints
    confidence: Floats

    @property
    def accepted_length(self) -> float:
        """Return mean tokens per round. A round that ends the answer inside its draft has no bonus (DeepSpec)."""
        return float(self.committed.mean())

    def whole(self) -> "Rounds":
        """Return the rounds whose block lies inside the answer, so that every row has an outcome."""
        kept = self.offered == self.confidence.shape[1]
        return Rounds(
            places=self.places[kept],
            accepted=self.accepted[kept],
            offered=self.offered[kept],
            committed=self.committed[kept],
            confidence=self.confidence[kept],
        )

    def prefixes(self) -> Floats:
        """Return [n, gamma]: 1 where this row and all before it were accepted."""
        rows = np.arange(self.confidence.shape[1])
        return (rows < self.accepted[:, None]).astype(np.float64)


def walk(anchors: Ints, accepted: Ints, remaining: Ints, confidence: Floats, longest: Ints) -> Rounds:
    """Decode one answer: from each anchor jump past what was accepted and the bonus token.

    Args:
        anchors: [A] positions that may start a block, rising.
        accepted: [A] number of drafted tokens that are accepted there.
        remaining: [A] answer tokens after the anchor.
        confidence: [A, gamma].
        longest: [A] verify at most this many drafted tokens.
    """
    taken, place = [], 0
    kept = np.minimum(accepted, longest)
    while place < len(anchors):
        taken.append(place)
        place = int(np.searchsorted(anchors, anchors[place] + kept[place] + 1))
    rounds = np.array(taken, dtype=np.int64)
    return Rounds(
        places=rounds,
        accepted=kept[rounds],
        offered=np.minimum(longest, remaining)[rounds],
        committed=np.minimum(kept + 1, remaining)[rounds],
        confidence=confidence[rounds],
    )


def joined(parts: Sequence[Rounds]) -> Rounds:
    """Return all rounds of several answers."""
    return Rounds(
        places=np.concatenate([part.places for part in parts]),
        accepted=np.concatenate([part.accepted for part in parts]),
        offered=np.concatenate([part.offered for part in parts]),
        committed=np.concatenate([part.committed for part in parts]),
        confidence=np.concatenate([part.confidence for part in parts]),
    )


def survival(logits: Floats, temperatures: Iterable[float]) -> Floats:
    """Return the chance that each row is reached and accepted: [n, gamma] raw confidence logits -> [n, gamma]."""
    scaled: Floats = np.cumprod(expit(logits / np.fromiter(temperatures, dtype=np.float64)), axis=1)
    return scaled


def conditional_acceptance(rounds: Rounds) -> list[float]:
    """Return, per row, the share accepted of the rows that were offered and whose predecessors were accepted."""
    shares = []
    for row in range(rounds.confidence.shape[1]):
        reached = (rounds.accepted >= row) & (rounds.offered > row)
        shares.append(float((rounds.accepted[reached] > row).mean()) if reached.any() else float("nan"))
    return shares


def confident_prefix(confidence: Floats, threshold: float) -> Ints:
    """Return how many rows come before the first whose own confidence is below `threshold`: [n, gamma] -> [n].

    `confidence` holds probabilities (DeepSpec's threshold rule is per row, not on the product).
    """
    below = np.concatenate((confidence < threshold, np.ones((len(confidence), 1), dtype=bool)), axis=1)
    rows: Ints = below.argmax(axis=1).astype(np.int64)
    return rows


def distinct_4gram_frac(tokens: Sequence[int]) -> float:
    """Return the share of an answer's 4-grams that are distinct; 1.0 for answers too short to have one.

    Degenerate text repeats itself and is easy to draft, so reports show this figure beside the accepted length.
    """
    grams = [tuple(tokens[place : place + 4]) for place in range(len(tokens) - 3)]
    return len(set(grams)) / len(grams) if grams else 1.0
