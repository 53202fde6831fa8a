"""The schedule of a training run (learning rate, order of sequences, rows and seeds of each step).

Pure functions of the step, so that a resumed run repeats it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from sparktier.drafter.data.packing import plan_rows

_SEED_MASK = (1 << 63) - 1


def learning_rate_scale(step: int, steps: int, warmup_frac: float) -> float:
    """Return the share of the peak rate at `step` (0-based): linear warm-up, then a cosine down to 0 at `steps`."""
    warmup = int(warmup_frac * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def mixed_seed(*parts: int) -> int:
    """Return one 63-bit seed from several numbers; any change of one changes it."""
    value = 0
    for part in parts:
        value = (value * 6364136223846793005 + part + 1442695040888963407) & _SEED_MASK
        value ^= value >> 29
    return value


def generator(*parts: int) -> torch.Generator:
    """Return a CPU generator seeded by `mixed_seed`."""
    return torch.Generator().manual_seed(mixed_seed(*parts))


def rows_forever(lengths_tokens: Sequence[int], ids: Sequence[int], row_tokens: int, seed: int) -> Iterator[list[int]]:
    """Yield packed rows of sequence ids, epoch after epoch, each epoch in a new order."""
    for epoch in itertools.count():
        shuffled = torch.randperm(len(ids), generator=generator(seed, epoch)).tolist()
        yield from plan_rows(lengths_tokens, [ids[place] for place in shuffled], row_tokens)


def rows_of_steps(rows: Iterator[list[int]], first: int, last: int, rows_per_step: int) -> list[list[list[int]]]:
    """Return the rows of steps first..last-1: [step][row][sequence id]."""
    taken = list(itertools.islice(rows, first * rows_per_step, last * rows_per_step))
    return [taken[start : start + rows_per_step] for start in range(0, len(taken), rows_per_step)]
