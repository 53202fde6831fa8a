"""The tables of a verify pass on a GPU in one launch. `attention_tables.write_tables` is the oracle."""

# Triton code is typed by its own compiler.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import triton
import triton.language as tl
from torch import Tensor

from sparktier.kernels.mask_triton import MASK_BLOCK, mask_bytes_of


def write_tables_triton(
    *,
    keys: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    mask_indptr: Tensor,
    packed: Tensor,
    prefix_lens: Tensor,
    rows: Tensor,
    tree: tuple[Tensor, Tensor, int] | None,
) -> None:
    """As `attention_tables.write_tables`, whose tables are taken apart. A slot's mask has less than 2^31 bits."""
    slots = len(rows)
    if tree is None:
        # Nothing is read through what stands in for a tree.
        words, live, (requests, width, each), blocks = rows, rows, (0, 1, 1), 1
    else:
        words, live, most_bytes = tree
        words, (requests, width, each) = words.contiguous(), words.shape
        blocks = max(1, triton.cdiv(most_bytes, MASK_BLOCK))
    _tables_kernel[(slots, blocks)](
        prefix_lens,
        rows,
        words,
        live,
        keys,
        qo_indptr,
        kv_indptr,
        mask_indptr,
        packed,
        slots,
        requests,
        width,
        each,
        SLOTS=triton.next_power_of_2(slots),
        BLOCK=MASK_BLOCK,
        TREE=tree is not None,
    )


@triton.jit
def _tables_kernel(
    prefix_lens,
    rows,
    words,
    live,
    keys_out,
    qo_indptr,
    kv_indptr,
    mask_indptr,
    packed,
    slots,
    requests,
    width,
    word_count,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    TREE: tl.constexpr,
):
    """One slot's entries, and BLOCK bytes of its mask."""
    slot = tl.program_id(0)
    each = tl.arange(0, SLOTS)
    inside = each < slots
    count = tl.load(rows + each, mask=inside, other=0).to(tl.int32)
    prefix = tl.load(prefix_lens + each, mask=inside, other=0).to(tl.int32)
    keys = tl.where(inside, prefix + count, 0)
    before = each < slot
    own = each == slot
    if tl.program_id(1) == 0:
        tl.store(keys_out + slot, tl.sum(tl.where(own, keys, 0), axis=0).to(tl.int64))
        tl.store(qo_indptr + slot + 1, tl.sum(tl.where(before | own, count, 0), axis=0))
        tl.store(kv_indptr + slot + 1, tl.sum(tl.where(before | own, keys, 0), axis=0))
        if slot == 0:
            tl.store(qo_indptr, 0)
            tl.store(kv_indptr, 0)
    if TREE:
        sizes = (count * keys + 7) // 8
        start = tl.sum(tl.where(before, sizes, 0), axis=0)
        size = tl.sum(tl.where(own, sizes, 0), axis=0)
        if tl.program_id(1) == 0:
            tl.store(mask_indptr + slot + 1, start + size)
            if slot == 0:
                tl.store(mask_indptr, 0)
        first = tl.program_id(1) * BLOCK
        if first < size:
            queries = tl.sum(tl.where(own, count, 0), axis=0)
            committed = tl.sum(tl.where(own, prefix, 0), axis=0)
            is_live = slot < requests
            live_rows = tl.load(live + slot, mask=is_live, other=0).to(tl.int32)
            places = first + tl.arange(0, BLOCK)
            found = mask_bytes_of(
                words, slot.to(tl.int64), is_live, committed, queries, live_rows, places, width, word_count, BLOCK
            )
            tl.store(packed + start + places, found, mask=places < size)
