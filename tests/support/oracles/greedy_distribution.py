"""Whether every token of a greedy answer is the one that plain decoding would have said after the text before it.

The oracle is transformers' model in float64, asked for a whole answer in one pass; penalties are applied here, slowly,
from their definition. Unlike a comparison of two answers it tells about every token.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from support.oracles.greedy import TIE_GAP, float64_model


@dataclass(frozen=True)
class Penalty:
    """Strengths as in OpenAI's API; neutral by default."""

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0


class GreedyDistribution:
    """The checkpoint in `model`."""

    def __init__(self, model: Path) -> None:
        self._model = float64_model(model)

    @torch.no_grad()
    def wrong(self, prompt: Sequence[int], answer: Sequence[int], penalty: Penalty) -> list[int]:
        """Return the positions of `answer` whose token is not the likeliest one, ties within TIE_GAP allowed."""
        logits = self._model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        seen: Counter[int] = Counter()
        found = []
        for position, token in enumerate(answer):
            row = _penalised(logits[position], seen, penalty)
            if float(row.max() - row[token]) > TIE_GAP:
                found.append(position)
            seen[token] += 1
        return found


def _penalised(row: torch.Tensor, seen: Counter[int], penalty: Penalty) -> torch.Tensor:
    row = row.clone()
    for token, count in seen.items():
        row[token] -= penalty.frequency * count + penalty.presence
        row[token] = row[token] * penalty.repetition if row[token] < 0 else row[token] / penalty.repetition
    return row
