"""What FlashInfer's kernels read of a verify pass beside its page table: where rows, keys and masks of requests begin.

On a GPU one kernel (attention_tables_triton.py), of which this is the oracle.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparktier.kernels.flashinfer_mask import MaskBuffers, write_tree_mask

_BYTE_BITS = 8


class AttentionTables(NamedTuple):
    """Buffers that are written in place; a graph reads all but the first.

    keys [slots] int64: that a slot's rows may attend to. qo_indptr, kv_indptr [slots + 1] int32: where each slot's rows
    and keys begin. mask: packed masks, for trees alone.
    """

    keys: Tensor
    qo_indptr: Tensor
    kv_indptr: Tensor
    mask: MaskBuffers


class TreeMask(NamedTuple):
    """Who sees whom: words [requests, width, words] int32 of `mask.ancestor_words`; live [requests]: rows of each.

    most_bytes: of one slot's packed mask, known on the host.
    """

    words: Tensor
    live: Tensor
    most_bytes: int


def write_tables(*, tables: AttentionTables, prefix_lens: Tensor, rows: Tensor, tree: TreeMask | None) -> None:
    """Write the tables of a pass, without reading anything back.

    Args:
        tables: with room for the mask.
        prefix_lens: [slots], committed tokens of each slot.
        rows: [slots] int32, its query rows, padding among them.
        tree: of the first slots; those after them are empty, and their rows see the first of themselves.
    """
    if rows.is_cuda:
        from sparktier.kernels.verify.attention_tables_triton import write_tables_triton

        write_tables_triton(
            keys=tables.keys,
            qo_indptr=tables.qo_indptr,
            kv_indptr=tables.kv_indptr,
            mask_indptr=tables.mask.indptr,
            packed=tables.mask.packed,
            prefix_lens=prefix_lens,
            rows=rows,
            tree=tree,
        )
        return
    keys = prefix_lens + rows
    tables.keys.copy_(keys)
    tables.qo_indptr.copy_(pad(rows.cumsum(0), (1, 0)))
    tables.kv_indptr.copy_(pad(keys.cumsum(0), (1, 0)))
    if tree is None:
        return
    empty = len(rows) - len(tree.words)
    sizes = (rows * keys + _BYTE_BITS - 1) // _BYTE_BITS
    assert int(sizes.max()) <= tree.most_bytes, "the kernel would leave bytes as they were"
    total = int(sizes.sum())
    write_tree_mask(
        buffers=MaskBuffers(tables.mask.packed[:total], tables.mask.indptr),
        words=pad(tree.words, (0, 0, 0, 0, 0, empty), value=1),
        row_counts=pad(tree.live[: len(tree.words)].long(), (0, empty)),
        prefix_lens=prefix_lens.long(),
        query_lens=rows.to(torch.int64),
    )
