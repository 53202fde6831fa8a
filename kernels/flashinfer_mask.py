"""The tree mask in the buffers that FlashInfer's fa2 backend (0.7.2) reads.

Why the mask travels as bytes in our own buffers: docs/decisions/0003-tree-mask-in-flashinfer.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sparktier.kernels.mask import mask_byte_indptr, packed_mask


class MaskBuffers(NamedTuple):
    """What the wrapper reads its mask from: packed [max bytes] uint8, indptr [batch + 1] int32 in bytes."""

    packed: Tensor
    indptr: Tensor


def mask_bytes(*, prefix_lens: Sequence[int], query_lens: Sequence[int]) -> int:
    """Bytes of a batch's packed mask, from lengths known on the host: size buffers by the largest batch and context."""
    return sum(-(-rows * (prefix + rows) // 8) for prefix, rows in zip(prefix_lens, query_lens, strict=True))


def write_tree_mask(
    *, buffers: MaskBuffers, words: Tensor, row_counts: Tensor, prefix_lens: Tensor, query_lens: Tensor
) -> None:
    """Write the mask of a round's trees into the buffers, on their device, without reading anything back.

    Must run before the wrapper's kernels in every round: a wrapper that owns mask buffers always applies them, and a
    plan without a mask leaves the old bytes there. Graph-capturable: all sizes come from the buffers.

    Args:
        buffers: at least `mask_bytes` large.
        words: [batch, width, words] int32 of `mask.ancestor_words`; row_counts: [batch] int64, the live rows.
        prefix_lens, query_lens: [batch] int64; rows from `row_counts` up to `query_lens` are padding, which may go
            beyond the width.
    """
    buffers.indptr.copy_(mask_byte_indptr(prefix_lens=prefix_lens, query_lens=query_lens))
    packed = packed_mask(
        words=words,
        row_counts=row_counts,
        prefix_lens=prefix_lens,
        query_lens=query_lens,
        indptr=buffers.indptr,
        total_bytes=len(buffers.packed),
    )
    buffers.packed.copy_(packed)
