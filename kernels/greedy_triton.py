"""The greedy token on a GPU: the best token of each block of a row, in one pass over the vocabulary.

`target_probs.greedy_tokens` is the oracle of what the blocks' winners come to.
"""

# Triton code is typed by its own compiler.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparktier.kernels.target_probs import NO_TOKEN
from sparktier.kernels.winners import Winners

GREEDY_BLOCK = 4096


def greedy_winners_triton(*, logits: Tensor) -> Winners:
    """The winners of `logits` [rows, V] of any float dtype; the lowest id wins among ties, and NaN and +inf win none.

    A row with either of them has no token, nor has one with nothing but -inf.
    """
    rows, vocab = logits.shape
    blocks = triton.cdiv(vocab, GREEDY_BLOCK)
    scores = torch.empty(rows, blocks, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, blocks, dtype=torch.int64, device=logits.device)
    _greedy_kernel[(rows, blocks)](
        logits, scores, tokens, vocab, logits.stride(0), BLOCK=GREEDY_BLOCK, NO_TOKEN=NO_TOKEN
    )
    return Winners(scores, tokens)


@triton.jit
def _greedy_kernel(logits, scores, tokens, vocab, stride, BLOCK: tl.constexpr, NO_TOKEN: tl.constexpr):
    """One block of one row."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab
    values = tl.load(logits + row * stride + columns, mask=inside, other=float("-inf")).to(tl.float32)
    # NaN makes the whole row say nothing, as +inf does: it must win.
    values = tl.where(values != values, float("inf"), values)
    best = tl.max(values, axis=0)
    token = tl.min(tl.where((values == best) & inside, columns, vocab), axis=0)
    is_finite = (best > float("-inf")) & (best < float("inf"))
    place = row * tl.num_programs(1) + block
    tl.store(scores + place, best)
    tl.store(tokens + place, tl.where(is_finite, token, NO_TOKEN).to(tl.int64))
