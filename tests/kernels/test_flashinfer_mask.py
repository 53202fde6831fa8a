"""FlashInfer: calls bind to the installed signatures, buffers hold the oracle's bytes, upstream's trap still exists."""

import inspect

import flashinfer
import numpy as np
import pytest
import torch
from flashinfer import prefill

from sparktier.kernels.flashinfer_mask import MaskBuffers, mask_bytes, write_tree_mask
from sparktier.kernels.mask import ancestor_words
from sparktier.kernels.reference import tree as reference
from support.random_trees import random_tree
from support.tree_verify_attention import AttentionShape, PageBuffers, plan_arguments, wrapper_arguments

WRAPPER = flashinfer.BatchPrefillWithPagedKVCacheWrapper
SHAPE = AttentionShape(16, 2, 128, 16, torch.bfloat16, torch.bfloat16, 0.088)


def page_buffers(batch: int) -> PageBuffers:
    return PageBuffers(*(torch.zeros(size, dtype=torch.int32) for size in (batch + 1, batch + 1, 64, batch)))


def test_every_call_binds_to_the_installed_release() -> None:
    assert flashinfer.__version__.startswith("0.7.2")
    mask = MaskBuffers(torch.zeros(8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int32))
    made = wrapper_arguments(workspace=torch.zeros(8), pages=page_buffers(2), mask=mask)
    inspect.signature(WRAPPER.__init__).bind(None, **made)
    inspect.signature(WRAPPER.plan).bind(None, **plan_arguments(pages=page_buffers(2), shape=SHAPE))
    inspect.signature(WRAPPER.run).bind(None, torch.zeros(1), (torch.zeros(1), torch.zeros(1)), out=torch.zeros(1))


def test_a_wrapper_with_mask_buffers_applies_them_without_a_mask_in_plan() -> None:
    # The rule that write_tree_mask relies on; a release that changes it must be noticed here.
    run = inspect.getsource(inspect.unwrap(WRAPPER.run))
    assert "if self._custom_mask_buf is not None or self._variant_owns_mask:" in run
    plan = inspect.getsource(inspect.unwrap(WRAPPER.plan))
    in_graph_mode = plan[plan.index("if self.is_cuda_graph_enabled:") : plan.index("self._cached_q_data_type =")]
    ours, _, _ = in_graph_mode.partition("else:\n            self._qo_indptr_buf =")
    assert "self._custom_mask_buf = " not in ours


@pytest.mark.parametrize("ragged", [True, False])
def test_buffers_hold_the_bytes_and_offsets_of_the_oracle(ragged: bool) -> None:
    for chance in range(6):
        generator = torch.Generator().manual_seed(chance)
        tree = random_tree(batch=4, rows=9, vocab=4, generator=generator)
        prefix_lens = torch.randint(0, 70, (4,), generator=generator)
        query_lens = tree.row_counts if ragged else torch.full((4,), 9)
        lengths = {"prefix_lens": prefix_lens.tolist(), "query_lens": query_lens.tolist()}
        total = mask_bytes(**lengths)
        buffers = MaskBuffers(torch.full((total + 7,), 255, dtype=torch.uint8), torch.full((5,), -1, dtype=torch.int32))
        write_tree_mask(
            buffers=buffers,
            words=ancestor_words(tree=tree),
            row_counts=tree.row_counts,
            prefix_lens=prefix_lens,
            query_lens=query_lens,
        )
        for i in range(4):
            table = reference.mask_rows(
                tree.parents[i].tolist(), int(tree.row_counts[i]), int(prefix_lens[i]), int(query_lens[i])
            )
            expected = np.packbits(np.array(table).flatten(), bitorder="little")  # as FlashInfer's segment_packbits
            assert buffers.packed[buffers.indptr[i] : buffers.indptr[i + 1]].tolist() == expected.tolist()
        assert int(buffers.indptr[-1]) == total


def test_upstream_still_gives_offsets_in_bits_for_a_packed_mask() -> None:
    qo_indptr, kv_indptr = torch.tensor([0, 3, 8]), torch.tensor([0, 2, 3])
    theirs = prefill._compute_page_mask_indptr(qo_indptr, kv_indptr, torch.tensor([4, 9]), 16)
    assert theirs.tolist() == [0, 3 * 20, 3 * 20 + 5 * 9]
    assert mask_bytes(prefix_lens=[17], query_lens=[3]) == 8
