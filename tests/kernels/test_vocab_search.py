"""Block search equals torch's own argmax and top-k, ties and ragged vocabularies included."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparktier.kernels.vocab_search import best_token, leading_tokens, top_tokens

VOCAB = st.one_of(st.integers(1, 9), st.sampled_from([63, 64, 65, 127, 128, 200, 1000]))


@given(
    st.integers(1, 2),
    VOCAB,
    st.integers(0, 2**31),
    st.sampled_from([3, 1000]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_best_token_is_the_first_of_the_largest(
    groups: int, vocab: int, chance: int, levels: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(chance)
    scores = torch.randint(-levels, levels, (groups, 3, vocab), generator=generator).to(dtype)
    rows = scores.tolist()
    assert best_token(scores=scores).tolist() == [[row.index(max(row)) for row in group] for group in rows]


@given(VOCAB, st.integers(0, 2**31), st.integers(1, 9), st.booleans(), st.booleans())
def test_top_tokens_are_the_largest_in_falling_order(
    vocab: int, chance: int, count: int, masked: bool, distinct: bool
) -> None:
    count = min(count, vocab)
    generator = torch.Generator().manual_seed(chance)
    scores = torch.randperm(4 * vocab, generator=generator).view(4, vocab).float()
    if masked:
        scores[:, ::2] = -torch.inf
    scores = scores if distinct else (scores / 8).floor()
    values, tokens = top_tokens(scores=scores, count=count)
    rows = scores.tolist()
    ranked = [sorted(range(vocab), key=lambda token, row=row: (-row[token], token)) for row in rows]
    assert tokens.tolist() == [order[:count] for order in ranked]
    assert values.tolist() == [[row[token] for token in order[:count]] for row, order in zip(rows, ranked, strict=True)]


@given(VOCAB, st.integers(0, 2**31), st.integers(1, 24))
def test_the_best_quarter_of_leading_tokens_is_certain(vocab: int, chance: int, count: int) -> None:
    count = min(count, vocab)
    scores = torch.randperm(2 * vocab, generator=torch.Generator().manual_seed(chance)).view(2, vocab).float()
    values, tokens = leading_tokens(scores=scores, count=count)
    for row, found, places in zip(scores.tolist(), values.tolist(), tokens.tolist(), strict=True):
        kept = [(value, token) for value, token in zip(found, places, strict=True) if value > float("-inf")]
        assert all(row[token] == value for value, token in kept)
        assert len({token for _, token in kept}) == len(kept)
        best = sorted(range(vocab), key=row.__getitem__, reverse=True)[: count // 4]
        assert set(best) <= {token for _, token in kept}


def test_nan_wins_as_in_torch() -> None:
    # Enough rows for the search by blocks.
    scores = torch.zeros(6, 200)
    scores[1, 150] = torch.nan
    assert best_token(scores=scores).tolist() == scores.argmax(dim=1).tolist() == [0, 150, 0, 0, 0, 0]


def test_best_token_of_one_wide_row_is_the_first_whichever_thread_finds_it() -> None:
    scores = torch.zeros(1, 200_000)
    scores[0, 70_000:] = 1.0
    assert best_token(scores=scores).tolist() == [70_000]
