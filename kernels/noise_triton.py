"""The keyed draw on a GPU: hash, exponential, race and block-wise argmax in one pass over the vocabulary.

Same results as the torch lines of noise.draw, which are the oracle.
"""

# Triton code is typed by its own compiler.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

DRAW_BLOCK = 1024


def draw_triton(*, weights: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """As `noise.draw`: weights [n, V] float, seeds, positions [n] int64 -> [n] int64."""
    rows, vocab = weights.shape
    blocks = triton.cdiv(vocab, DRAW_BLOCK)
    scores = torch.empty(rows, blocks, dtype=torch.float64, device=weights.device)
    tokens = torch.empty(rows, blocks, dtype=torch.int64, device=weights.device)
    keys = (seeds.contiguous(), positions.contiguous())
    _draw_kernel[(rows, blocks)](weights, *keys, scores, tokens, vocab, weights.stride(0), BLOCK=DRAW_BLOCK)
    best, blocks_of_best = scores.max(dim=1, keepdim=True)
    return tokens.gather(1, blocks_of_best).where(best > 0, -1).squeeze(1)


@triton.jit
def _scramble(word):
    word = word * 0xCC9E2D51
    return ((word << 15) | (word >> 17)) * 0x1B873593


@triton.jit
def _absorb(state, word):
    state = state ^ _scramble(word)
    return ((state << 13) | (state >> 19)) * 5 + 0xE6546B64


@triton.jit
def _draw_kernel(weights, seeds, positions, scores, tokens, vocab, stride, BLOCK: tl.constexpr):
    """The best of one block of one row in the race weight / exponential."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    seed = tl.load(seeds + row)
    state = tl.zeros([], dtype=tl.uint32)
    state = _absorb(state, seed.to(tl.uint32))
    state = _absorb(state, (seed >> 32).to(tl.uint32))
    state = _absorb(state, tl.load(positions + row).to(tl.uint32))
    state = _absorb(state, columns.to(tl.uint32)) ^ 16
    state = (state ^ (state >> 16)) * 0x85EBCA6B
    state = (state ^ (state >> 13)) * 0xC2B2AE35
    state = state ^ (state >> 16)
    uniform = tl.maximum(state.to(tl.float64), 0.5) / 4294967295.0
    exponential = tl.maximum(-tl.log(uniform), 2.3283064365386963e-10)
    weight = tl.load(weights + row * stride + columns, mask=columns < vocab, other=0.0).to(tl.float64)
    score = tl.where(columns < vocab, weight / exponential, -1.0)
    best = tl.max(score, axis=0)
    place = row * tl.num_programs(1) + block
    tl.store(scores + place, best)
    tl.store(tokens + place, tl.min(tl.where(score == best, columns, vocab), axis=0).to(tl.int64))
