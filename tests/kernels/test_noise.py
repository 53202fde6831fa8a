"""Keyed noise: equal to the integer reference, uniform, independent along seeds, positions, tokens and streams."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from sparktier.kernels.noise import Stream, draw, draw_distinct, exponentials, stream_seeds, uniforms
from sparktier.kernels.reference import accept as reference
from sparktier.kernels.target_probs import NO_TOKEN
from support.oracles.sequence_distribution import EXACT_ABOVE_P, p_value

SEED = st.integers(-(2**63), 2**63 - 1)
POSITION = st.integers(0, 2**31 - 1)


@given(st.lists(st.tuples(SEED, POSITION), min_size=1, max_size=8))
def test_coins_and_streams_equal_the_integer_reference(keys: list[tuple[int, int]]) -> None:
    seeds, counters = (torch.tensor(part) for part in zip(*keys, strict=True))
    expected = torch.tensor([reference.coin(seed, counter) for seed, counter in keys], dtype=torch.float64)
    assert torch.equal(uniforms(seeds=seeds, counters=counters), expected)
    streams = stream_seeds(seeds=seeds, stream=Stream.ACCEPT, rounds=counters)
    assert [int(s) % 2**64 for s in streams] == [reference.stream_seed(seed, 2, at) for seed, at in keys]


@given(SEED, POSITION, POSITION)
def test_reference_hash_is_the_published_murmur3(seed: int, position: int, token: int) -> None:
    assert _murmur3(b"test") == 0xBA6BD213  # a published test vector of seed 0
    data = (seed % 2**64).to_bytes(8, "little") + position.to_bytes(4, "little") + token.to_bytes(4, "little")
    assert reference.hash32(seed, position, token) == _murmur3(data)


def _murmur3(data: bytes) -> int:
    """MurmurHash3 as published, over bytes: shares nothing with the two word-wise versions under test."""
    h = 0
    for i in range(0, len(data), 4):
        k = int.from_bytes(data[i : i + 4], "little") * 0xCC9E2D51 % 2**32
        h ^= (k * 2**15 % 2**32 + k // 2**17) * 0x1B873593 % 2**32
        h = ((h * 2**13 % 2**32 + h // 2**19) * 5 + 0xE6546B64) % 2**32
    h ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = (h ^ (h >> shift)) * factor % 2**32
    return h


@settings(max_examples=40)
@given(st.lists(st.tuples(SEED, POSITION), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 2**31))
def test_draw_equals_the_reference_and_each_row_alone(keys: list[tuple[int, int]], vocab: int, chance: int) -> None:
    seeds, positions = (torch.tensor(part) for part in zip(*keys, strict=True))
    weights = torch.rand(len(keys), vocab, generator=torch.Generator().manual_seed(chance)) ** 4 + 1e-6
    weights[:, 1::3] = 0.0
    together = draw(weights=weights, seeds=seeds, positions=positions).tolist()
    assert together == [reference.draw(w.tolist(), s, at) for w, (s, at) in zip(weights, keys, strict=True)]
    for row in range(len(keys)):
        here = slice(row, row + 1)
        assert draw(weights=weights[here], seeds=seeds[here], positions=positions[here]).tolist() == together[here]


@pytest.mark.parametrize("vocab", [1, 64, 5000, 50_000])
@pytest.mark.parametrize("peaked", [0, 4, 60])
def test_draw_is_the_winner_of_the_whole_race(vocab: int, peaked: int) -> None:
    chance = torch.Generator().manual_seed(vocab + peaked)
    weights = torch.rand(64, vocab, generator=chance) ** peaked
    weights[::2] /= 1e6  # unnormalised
    seeds = torch.randint(-(2**62), 2**62, (64,), generator=chance)
    positions = torch.randint(9000, (64,), generator=chance)
    race = weights.double() / exponentials(seeds=seeds, positions=positions, columns=torch.arange(vocab))
    # A row whose every weight was rounded to 0 has no token to draw.
    winner = race.argmax(dim=1).where(race.amax(dim=1) > 0, NO_TOKEN)
    assert torch.equal(draw(weights=weights, seeds=seeds, positions=positions), winner)


def test_draw_is_the_winner_where_the_best_bound_is_another_s() -> None:
    # A heavy token's bound is far above its score when its draw is bad: it is looked at first, and loses.
    chance, rows = torch.Generator().manual_seed(3), 50_000
    weights = torch.softmax(3 * torch.randn(rows, 256, generator=chance), dim=1)
    seeds, positions = torch.arange(rows), torch.full((rows,), 7)
    race = weights.double() / exponentials(seeds=seeds, positions=positions, columns=torch.arange(256))
    assert torch.equal(draw(weights=weights, seeds=seeds, positions=positions), race.argmax(dim=1))


def test_a_row_without_numbers_draws_no_token_and_leaves_others_alone() -> None:
    weights, keys = torch.rand(3, 1000), torch.arange(3)
    whole = draw(weights=weights, seeds=keys, positions=keys)
    weights[1] = torch.nan
    broken = draw(weights=weights, seeds=keys, positions=keys)
    assert broken[1] == NO_TOKEN
    assert torch.equal(broken[::2], whole[::2])


def keys_along(axis: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(seeds [n], positions [n], columns [m]) with `count` neighbouring values along one axis."""
    run, one = torch.arange(count), torch.full((count,), 12345)
    if axis == "seed":
        return run, one, torch.tensor([17])
    if axis == "seed high word":
        return run << 32, one, torch.tensor([17])
    if axis == "position":
        return one, run, torch.tensor([17])
    return torch.tensor([42]), torch.tensor([12345]), run


@pytest.mark.parametrize("axis", ["seed", "seed high word", "position", "token"])
def test_uniform_and_independent_along_each_axis(axis: str) -> None:
    seeds, positions, columns = keys_along(axis, 200_000)
    uniform = torch.exp(-exponentials(seeds=seeds, positions=positions, columns=columns)).flatten()
    cells = (uniform * 16).long().clamp(max=15)
    assert chisquare(torch.bincount(cells, minlength=16).numpy()).pvalue > EXACT_ABOVE_P
    for lag in (1, 2, 8, 256):
        pairs = cells[:-lag] * 16 + cells[lag:]
        assert chisquare(torch.bincount(pairs, minlength=256).numpy()).pvalue > EXACT_ABOVE_P
    low_bits = (uniform * 2**32).long() % 16
    assert chisquare(torch.bincount(low_bits, minlength=16).numpy()).pvalue > EXACT_ABOVE_P


def test_the_independence_test_sees_a_weak_hash() -> None:
    weak = (torch.arange(200_000) * 2654435761 % 2**32).double() / 2**32  # multiplicative: uniform, but a lattice
    cells = (weak * 16).long()
    assert chisquare(torch.bincount(cells, minlength=16).numpy()).pvalue > EXACT_ABOVE_P
    assert chisquare(torch.bincount(cells[:-1] * 16 + cells[1:], minlength=256).numpy()).pvalue < 1e-9


def test_streams_of_one_seed_are_independent() -> None:
    seeds, rounds = torch.arange(200_000), torch.full((200_000,), 7)
    sides = [stream_seeds(seeds=seeds, stream=s, rounds=rounds) for s in (Stream.DRAFT, Stream.ACCEPT)]
    sides += [stream_seeds(seeds=seeds, stream=Stream.DRAFT, rounds=rounds + 1), seeds]
    cells = [(uniforms(seeds=side, counters=rounds) * 8).long() for side in sides]
    for i, one in enumerate(cells):
        for other in cells[:i]:
            assert chisquare(torch.bincount(one * 8 + other, minlength=64).numpy()).pvalue > EXACT_ABOVE_P


def test_neighbouring_positions_draw_jointly_from_the_product_distribution() -> None:
    weights, seeds = torch.tensor([0.5, 0.3, 0.15, 0.05]).expand(100_000, -1), torch.arange(100_000)
    tokens = torch.stack([draw(weights=weights, seeds=seeds, positions=seeds * 0 + at) for at in (9, 10)], dim=1)
    distribution = (weights[0].unsqueeze(1) * weights[0]).flatten().double()
    assert p_value(tokens=tokens, distribution=distribution, vocab=4) > EXACT_ABOVE_P


def test_distinct_draws_follow_sequential_renormalised_sampling() -> None:
    weights, seeds = torch.tensor([0.6, 0.25, 0.15]), torch.arange(60_000)
    pairs = draw_distinct(weights=weights.expand(60_000, -1), count=2, seeds=seeds, positions=seeds * 0)
    distribution = torch.zeros(3, 3, dtype=torch.float64)
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            distribution[first, second] = weights[first] * weights[second] / (1 - weights[first])
    kept = distribution.flatten() > 0
    counts = torch.bincount(pairs[:, 0] * 3 + pairs[:, 1], minlength=9).double()
    assert float(counts[~kept].sum()) == 0
    expected = distribution.flatten()[kept] / distribution.sum() * counts.sum()
    assert chisquare(counts[kept].numpy(), expected.numpy()).pvalue > EXACT_ABOVE_P


def test_distinct_draws_beyond_the_support_are_marked() -> None:
    tokens = draw_distinct(
        weights=torch.tensor([[0.0, 0.4, 0.0, 0.6]]), count=3, seeds=torch.tensor([1]), positions=torch.tensor([1])
    )
    assert sorted(tokens[0, :2].tolist()) == [1, 3]
    assert tokens[0, 2] == -1
