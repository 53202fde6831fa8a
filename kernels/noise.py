"""Keyed noise: every random number of verification is a pure hash of (seed, position, token).

The same key gives the same draw on every rank, device, batch shape and rung, which makes sampled output reproducible
token by token.
"""

from enum import IntEnum

import torch
from torch import Tensor

from sparktier.kernels.vocab_search import block_maxima, block_tokens, top_tokens

_WORD = 0xFFFFFFFF
_SMALLEST_EXPONENTIAL = 2.0**-32


class Stream(IntEnum):
    """Independent uses of one request seed. The target's own draws use the seed itself, without a stream."""

    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


def stream_seeds(*, seeds: Tensor, stream: Stream, rounds: Tensor) -> Tensor:
    """Seeds [n] int64 for one stream of one round, from request seeds [n] int64 and rounds [n] int64.

    `rounds` is the position of the round's anchor. A rejected position is drafted again in the next round; with the
    same noise, a budget that follows lagged confidences would already have read it. The anchor moves every round, so no
    key is used twice. Mixing: the finaliser of SplitMix64 (Steele et al., 2014).
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
    (`srt/layers/sampler.py`, `multinomial_with_seed`) when no request of its batch filters. When one does, SGLang keys
    the noise by the rank in the sorted probabilities instead of the token, so its draw depends on the batch; ours never
    does. -1 where a row has no mass.
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

    Logarithms, in float64, only where the winner may be: since -log u >= 1 - u, no score is above weight / (1 - u). The
    block of the highest bound gives a score; blocks whose bounds are lower can't hold a better one.
    """
    bounds = _scores_at_most(weights, hashed)
    first = bounds.argmax(dim=1, keepdim=True)
    score, token = _best_of_blocks(weights, hashed, torch.arange(len(weights)), first.squeeze(1))
    rows, blocks = (bounds >= score.float().unsqueeze(1)).nonzero(as_tuple=True)
    scores, tokens = _best_of_blocks(weights, hashed, rows, blocks)
    best = score.scatter_reduce(0, rows, scores, "amax")
    won = scores == best[rows]
    token = token.scatter_reduce(0, rows[won], tokens[won], "amin", include_self=False)
    return token.where(best > 0, -1)


def _scores_at_most(weights: Tensor, hashed: Tensor) -> Tensor:
    """A bound on the scores of each block: [n, blocks] float32, too high by far more than float32 can be wrong."""
    # 1 - u is the hash's distance from its largest value, the complement of its bits, in units of 2^-32.
    complement = (hashed ^ _signed(0x7FFFFFFF)).float()
    shift = complement.new_tensor(0.5 - 2.0**-24)
    below = torch.add(shift, complement, alpha=2.0**-32, out=complement).clamp_(min=_SMALLEST_EXPONENTIAL)
    return block_maxima(scores=torch.div(weights, below, out=below)).mul_(1 + 1e-5)


def _best_of_blocks(weights: Tensor, hashed: Tensor, rows: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The best score in block `blocks[i]` of row `rows[i]`, and its token, lowest among ties: both [n] -> two [n]."""
    tokens = block_tokens(blocks=blocks.unsqueeze(1)).clamp(max=weights.shape[-1] - 1)
    at = rows.unsqueeze(1), tokens
    scores, places = (weights[at].double() / _exponential(hashed[at])).max(dim=1, keepdim=True)
    return scores.squeeze(1), tokens.gather(1, places).squeeze(1)


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
    spare = torch.empty_like(hashed)  # fresh memory each time would cost more than the shifts
    hashed.bitwise_xor_(_shift_right(hashed, 16, out=spare)).mul_(_signed(0x85EBCA6B))
    hashed.bitwise_xor_(_shift_right(hashed, 13, out=spare)).mul_(_signed(0xC2B2AE35))
    return hashed.bitwise_xor_(_shift_right(hashed, 16, out=spare))


def _scramble(word: Tensor) -> Tensor:
    """The word as it enters the state, turned as the state is after it."""
    return _rotate_left(_rotate_left(word * _signed(0xCC9E2D51), 15).mul_(0x1B873593), 13)


def _absorb(state: Tensor, scrambled: Tensor) -> Tensor:
    # Turned before they meet, which comes to the same: one of the two is a whole vocabulary wide only afterwards.
    return (_rotate_left(state, 13) ^ scrambled).mul_(5).add_(_signed(0xE6546B64))


def _rotate_left(word: Tensor, bits: int) -> Tensor:
    return (word << bits).bitwise_or_(_shift_right(word, 32 - bits))


def _shift_right(word: Tensor, bits: int, *, out: Tensor | None = None) -> Tensor:
    """Logical shift of int32; torch's own keeps the sign."""
    return torch.bitwise_right_shift(word, bits, out=out).bitwise_and_((1 << (32 - bits)) - 1)


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
