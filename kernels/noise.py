"""Keyed noise: every random number of verification is a pure hash of (seed, position, token).

The same key gives the same draw on every rank, device, batch shape and rung, which makes sampled output reproducible
token by token. Knows nothing of models, requests or generators with state.
"""

from enum import IntEnum

import torch
from torch import Tensor

from sparktier.kernels.search import best_token, top_tokens

_WORD = 0xFFFFFFFF
_SMALLEST_EXPONENTIAL = 2.0**-32


class Stream(IntEnum):
    """Independent uses of one request seed. The target's own draws use the seed itself, without a stream."""

    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


def stream_seeds(*, seeds: Tensor, stream: Stream, rounds: Tensor) -> Tensor:
    """Seeds [n] int64 for one stream of one round, from request seeds [n] int64 and rounds [n] int64.

    `rounds` is the position of the round's anchor. A rejected position is drafted again in the next round: were its
    noise the same again, a budget that follows lagged confidences would already have read it. The anchor moves every
    round, so no key is ever used twice. Mixing: the finaliser of SplitMix64 (Steele et al., 2014).
    """
    return _mix64(_mix64(seeds + int(stream)) ^ rounds)


def uniforms(*, seeds: Tensor, counters: Tensor) -> Tensor:
    """One uniform per key, strictly inside (0, 1): seeds, counters [n] int64 -> [n] float64."""
    column = torch.zeros(1, dtype=torch.int64, device=seeds.device)
    return (_unsigned(_hash(seeds, counters, column)).squeeze(1) + 0.5) / 2.0**32


def draw(*, weights: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """One token per row from unnormalised `weights` [n, V]; seeds, positions [n] int64 -> [n] int64.

    argmax(weight / exponential), which is argmax(log p + Gumbel) without its two logarithms (Gumbel, 1954). With the
    request's own seed and the position of the row's input token this is the token that SGLang 0.5.23 draws
    (`srt/layers/sampler.py`, `multinomial_with_seed`) when nobody in its batch filters. When somebody does, SGLang keys
    the noise by the rank in the sorted probabilities instead of the token, so its draw depends on the batch; ours never
    does. A row needs positive mass.
    """
    if weights.is_cuda:
        from sparktier.kernels.noise_triton import draw_triton

        return draw_triton(weights=weights, seeds=seeds, positions=positions)
    return _race_winner(weights, _hash(seeds, positions, torch.arange(weights.shape[-1])))


def draw_distinct(*, weights: Tensor, count: int, seeds: Tensor, positions: Tensor) -> Tensor:
    """`count` tokens per row without replacement, in draw order: weights [n, V] -> [n, count] int64.

    The `count` best of the race are distributed as sequential renormalised draws (Gumbel-top-k, Kool et al., 2019).
    Where the support is smaller than `count`, the places left over hold -1.
    """
    scores, tokens = top_tokens(scores=_race(weights, seeds, positions), count=count)
    return tokens.masked_fill(scores <= 0, -1)


def exponentials(*, seeds: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
    """Unit exponentials of the keys: seeds, positions [n], columns [m], all int64 -> [n, m] float64, never 0 or inf.

    SGLang's mapping hash / (2^32 - 1), with both ends moved inside by less than one step of the hash.
    """
    return _exponential(_hash(seeds, positions, columns))


def _race(weights: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    columns = torch.arange(weights.shape[-1], device=weights.device)
    # float64: a float32 uniform cannot resolve the upper tail, where the winners are.
    return weights.double() / exponentials(seeds=seeds, positions=positions, columns=columns)


def _race_winner(weights: Tensor, hashed: Tensor) -> Tensor:
    """argmax(weight / exponential) of each row, lowest token among ties: [n, V], hashes [n, V] int32 -> [n] int64.

    Exponentials, in float64, only of tokens that may beat the heaviest one's score s: since -log u >= 1 - u, a token
    wins with 1 - u <= weight / s or not at all. The bounds below are loose by far more than float32 can be wrong.
    """
    heaviest = best_token(scores=weights).unsqueeze(1)
    score = weights.gather(1, heaviest).double() / _exponential(hashed.gather(1, heaviest))
    reach = (2.0**32 * (1 + 1e-5) / score).float()
    # The hash's distance from its largest value, 2^32 (1 - u), is the complement of its bits.
    distance = (hashed ^ _signed(0x7FFFFFFF)).float()
    rows, tokens = (distance <= (weights.float() * reach).add_(512.0 - 2.0**31)).nonzero(as_tuple=True)
    scores = weights[rows, tokens].double() / _exponential(hashed[rows, tokens])
    best = scores.new_zeros(len(weights)).scatter_reduce_(0, rows, scores, "amax")
    won = scores == best[rows]
    return heaviest.squeeze(1).scatter_reduce_(0, rows[won], tokens[won], "amin", include_self=False)


def _exponential(hashed: Tensor) -> Tensor:
    scaled = _unsigned(hashed).clamp_(min=0.5).div_(_WORD)
    return scaled.log_().neg_().clamp_(min=_SMALLEST_EXPONENTIAL)


def _hash(seeds: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
    """MurmurHash3 x86-32 (Appleby, public domain) of seed (two words), position, column -> [n, m] int32.

    In int32 because 64-bit products have no vector instruction on most CPUs; products wrap as the hash wants.
    """
    state = torch.zeros_like(seeds, dtype=torch.int32)
    for word in (seeds, seeds >> 32, positions):
        state = _absorb(state, _scramble(_low_word(word)))
    hashed = _absorb(state[:, None], _scramble(_low_word(columns))[None, :])
    hashed.bitwise_xor_(16)  # bytes hashed: four words
    hashed.bitwise_xor_(_shift_right(hashed, 16)).mul_(_signed(0x85EBCA6B))
    hashed.bitwise_xor_(_shift_right(hashed, 13)).mul_(_signed(0xC2B2AE35))
    return hashed.bitwise_xor_(_shift_right(hashed, 16))


def _scramble(word: Tensor) -> Tensor:
    return _rotate_left(word * _signed(0xCC9E2D51), 15).mul_(0x1B873593)


def _absorb(state: Tensor, word: Tensor) -> Tensor:
    return _rotate_left(state ^ word, 13).mul_(5).add_(_signed(0xE6546B64))


def _rotate_left(word: Tensor, bits: int) -> Tensor:
    return (word << bits).bitwise_or_(_shift_right(word, 32 - bits))


def _shift_right(word: Tensor, bits: int) -> Tensor:
    """Logical shift of int32; torch's own keeps the sign."""
    return (word >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _low_word(values: Tensor) -> Tensor:
    """The low 32 bits of int64 as int32, without an out-of-range cast."""
    return (((values & _WORD) ^ 0x80000000) - 0x80000000).to(torch.int32)


def _unsigned(word: Tensor) -> Tensor:
    """int32 bits read as unsigned, in float64 (exact)."""
    return (word ^ _signed(1 << 31)).to(torch.float64).add_(2.0**31)


def _mix64(value: Tensor) -> Tensor:
    value = value + _signed64(0x9E3779B97F4A7C15)
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _signed64(0xBF58476D1CE4E5B9)
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _signed64(0x94D049BB133111EB)
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _signed64(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
