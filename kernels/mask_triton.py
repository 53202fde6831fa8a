"""FlashInfer's packed mask on a GPU: every byte from the ancestor words, nothing wider than a byte in memory.

Same bytes as mask.packed_mask, which is the oracle.
"""

# Triton code is typed by its own compiler.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

MASK_BLOCK = 512


def packed_mask_triton(
    *, words: Tensor, row_counts: Tensor, prefix_lens: Tensor, query_lens: Tensor, indptr: Tensor, total_bytes: int
) -> Tensor:
    """As `mask.packed_mask`: [total_bytes] uint8. One request's mask has less than 2^31 bits."""
    batch, rows, word_count = words.shape
    out = torch.zeros(total_bytes, dtype=torch.uint8, device=words.device)
    _mask_kernel[(batch, triton.cdiv(total_bytes, MASK_BLOCK))](
        words.contiguous(), row_counts, prefix_lens, query_lens, indptr, out, rows, word_count, BLOCK=MASK_BLOCK
    )
    return out


@triton.jit
def _mask_kernel(words, row_counts, prefix_lens, query_lens, indptr, out, rows, word_count, BLOCK: tl.constexpr):
    """BLOCK bytes of one request; a request shorter than this block of bytes has nothing to do."""
    request = tl.program_id(0).to(tl.int64)
    start = tl.load(indptr + request)
    size = tl.load(indptr + request + 1) - start
    first = tl.program_id(1) * BLOCK
    if first < size:
        prefix = tl.load(prefix_lens + request).to(tl.int32)
        queries = tl.load(query_lens + request).to(tl.int32)
        live_rows = tl.load(row_counts + request).to(tl.int32)
        places = first + tl.arange(0, BLOCK)
        packed = mask_bytes_of(words, request, True, prefix, queries, live_rows, places, rows, word_count, BLOCK)
        tl.store(out + start + places, packed, mask=places < size)


@triton.jit
def mask_bytes_of(words, request, is_live, prefix, queries, live_rows, places, rows, word_count, BLOCK: tl.constexpr):
    """The bytes at `places` [BLOCK] of a request's mask, uint8; rows of one that is not live see their first column."""
    keys = prefix + queries
    row = places * 8 // keys  # the one division; the other seven bits follow by counting on
    column = places * 8 - row * keys
    packed = tl.zeros([BLOCK], dtype=tl.int32)
    for bit in tl.static_range(8):
        drafted = tl.maximum(column - prefix, 0)
        in_tree = (row < queries) & (column >= prefix)
        # Padding may have more rows, and so more columns, than trees are wide.
        seer = request * rows + tl.minimum(row, rows - 1)
        place = tl.minimum(drafted // 32, word_count - 1)
        word = tl.load(words + seer * word_count + place, mask=in_tree & is_live, other=1)
        seen = (in_tree & (((word >> (drafted % 32)) & 1) == 1)) | ((column < prefix) & (row < live_rows))
        packed = packed | (seen.to(tl.int32) << bit)
        row += (column == keys - 1).to(tl.int32)
        column = tl.where(column == keys - 1, 0, column + 1)
    return packed.to(tl.uint8)
