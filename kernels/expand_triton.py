"""Child search on a GPU: (bias + U) / T, its log-sum-exp and its top-k in one pass over the vocabulary.

Same results as the torch lines of expand.py, which are the oracle. The bias is still one matrix product before this.
"""

# Triton code is typed by its own compiler.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

TOP_BLOCK = 2048


def top_children_triton(*, bias: Tensor, block_row: Tensor, temperatures: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draft probabilities and tokens of the likeliest children, falling, lower id first among ties.

    Args:
        bias: [batch, parents, V] of any float dtype, W2 W1[parent].
        block_row: [batch, V] of any float dtype, U of this depth.
        temperatures: [batch] float32.
        count: children per parent.

    Returns:
        q [batch, parents, count] float32 and tokens [batch, parents, count] int64.
    """
    batch, parents, vocab = bias.shape
    blocks = triton.cdiv(vocab, TOP_BLOCK)
    values = torch.empty(batch, parents, blocks, count, dtype=torch.float32, device=bias.device)
    tokens = torch.empty(values.shape, dtype=torch.int64, device=bias.device)
    masses = torch.empty(batch, parents, blocks, dtype=torch.float32, device=bias.device)
    _top_kernel[(batch * parents, blocks)](
        bias.contiguous(),
        block_row.contiguous(),
        temperatures.contiguous(),
        values,
        tokens,
        masses,
        vocab,
        parents,
        COUNT=count,
        BLOCK=TOP_BLOCK,
    )
    best = values.flatten(2).sort(dim=-1, descending=True, stable=True)
    kept = best.indices[..., :count]
    q = torch.exp(best.values[..., :count] - masses.logsumexp(dim=-1, keepdim=True))
    return q, tokens.flatten(2).gather(-1, kept)


@triton.jit
def _top_kernel(
    bias, block_row, temperatures, values, tokens, masses, vocab, parents, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """One block of one parent's row: its log-sum-exp and its COUNT largest, found one after the other."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    request = row // parents
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab
    logits = tl.load(bias + row * vocab + columns, mask=inside, other=0.0).to(tl.float32)
    logits += tl.load(block_row + request * vocab + columns, mask=inside, other=0.0).to(tl.float32)
    logits = logits / tl.load(temperatures + request)
    logits = tl.where(inside, logits, float("-inf"))
    place = row * tl.num_programs(1) + block
    top = tl.max(logits, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    tl.store(masses + place, shift + tl.log(tl.sum(tl.exp(logits - shift), axis=0)))
    left = inside
    for rank in tl.static_range(COUNT):
        best = tl.max(tl.where(left, logits, float("-inf")), axis=0)
        token = tl.min(tl.where(left & (logits == best), columns, BLOCK * tl.num_programs(1)), axis=0)
        left = left & (columns != token)
        tl.store(values + place * COUNT + rank, best)
        tl.store(tokens + place * COUNT + rank, tl.minimum(token, vocab - 1).to(tl.int64))
