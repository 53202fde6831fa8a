"""Penalties against plain decoding's, one token after the other in Python floats."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparktier.kernels.penalties import Penalties, penalise

VOCAB = 7


def one_by_one(logits: list[float], emitted: list[int], frequency: float, presence: float, scale: float) -> list[float]:
    changed = []
    for token, logit in enumerate(logits):
        times = emitted.count(token)
        value = logit - frequency * times - (presence if times else 0.0)
        if times:
            value = value * scale if value < 0 else value / scale
        changed.append(value)
    return changed


def counts_of(emitted: list[list[int]]) -> torch.Tensor:
    return torch.stack([torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=VOCAB) for tokens in emitted])


@given(
    emitted=st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=6), min_size=1, max_size=4),
    strengths=st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.1, 2)),
    seed=st.integers(0, 99),
)
def test_each_row_is_what_plain_decoding_would_have_seen(
    emitted: list[list[int]], strengths: tuple[float, float, float], seed: int
) -> None:
    rows = len(emitted)
    logits = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # Rows of one pass differ: the last one asks for nothing.
    neutral = torch.arange(rows) == rows - 1
    frequency, presence, scale = (
        torch.where(neutral, plain, value) for plain, value in zip((0.0, 0.0, 1.0), strengths, strict=True)
    )
    expected = [
        one_by_one(logits[r].tolist(), emitted[r], float(frequency[r]), float(presence[r]), float(scale[r]))
        for r in range(rows)
    ]
    penalise(logits=logits, counts=counts_of(emitted), penalties=Penalties(frequency, presence, scale))
    assert torch.allclose(logits, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_penalties_that_are_not_asked_for_change_nothing() -> None:
    logits = torch.randn(2, VOCAB)
    before = logits.clone()
    penalise(logits=logits, counts=torch.ones(2, VOCAB, dtype=torch.long), penalties=Penalties())
    assert torch.equal(logits, before)


def test_counts_of_the_caller_stay_as_they_are() -> None:
    counts = torch.zeros(1, VOCAB)
    penalise(logits=torch.zeros(1, VOCAB), counts=counts, penalties=Penalties(frequency=torch.tensor([1.0])))
    assert counts.sum() == pytest.approx(0.0)
