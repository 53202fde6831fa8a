"""Passes whose requests have equal rows: what their graphs read, held to slow oracles, and what FlashInfer plans."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend, fast_prefill_plan
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

from sparktier.kernels.mask import ancestor_words
from sparktier.kernels.reference import tree as reference
from sparktier.serving.engine.cuda import flashinfer_attention
from sparktier.serving.engine.cuda.flashinfer_attention import GraphKey, Lengths
from sparktier.serving.engine.cuda.flashinfer_plan import plan_on_host
from sparktier.serving.engine.graphs.verify_graphs import CHAIN, TREE
from sparktier.serving.engine.speculation.verify_pass import RaggedVerifyInput
from support.launches.attention import SLOTS, Attention, Wrapper
from support.random_trees import random_tree

CHAIN_ROWS, TREE_ROWS = 3, 6


def a_pass(rows: int, prefix: Any, *, live: int, words: Any = None, in_capture: bool = False) -> Any:
    """As SGLang hands it to the backend: empty slots are request 0 with one token."""
    empty = SLOTS - live
    on_host = torch.cat([prefix + (0 if in_capture else rows), torch.ones(empty, dtype=torch.long)])
    nothing = torch.zeros(1)
    return SimpleNamespace(
        batch_size=SLOTS,
        num_padding=empty,
        forward_mode=ForwardMode.TARGET_VERIFY,
        req_pool_indices=torch.cat([torch.arange(1, live + 1), torch.zeros(empty, dtype=torch.long)]),
        seq_lens=torch.cat([prefix, torch.ones(empty, dtype=torch.long)]),
        seq_lens_cpu=on_host,
        kv_loc_plan=None,
        spec_info=RaggedVerifyInput(nothing, nothing, draft_token_num=rows, ancestor_words=words),
    )


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> Attention:
    backend = Attention()
    one = torch.ones(SLOTS, dtype=torch.long)
    for label, rows in ((CHAIN, 1), (CHAIN, CHAIN_ROWS), (TREE, TREE_ROWS)):
        monkeypatch.setattr(flashinfer_attention, "get_capture_attention_variant", lambda label=label: label)
        backend.init_forward_metadata_out_graph(a_pass(rows, one, live=SLOTS, in_capture=True), in_capture=True)
    return backend


def wrapper_of(attention: Attention, rows: int, *, is_tree: bool = False) -> Wrapper:
    wrapper: Wrapper = attention._verify_wrappers[GraphKey(SLOTS, rows, SLOTS * rows, is_tree)]
    assert wrapper.masked == is_tree
    return wrapper


@pytest.mark.parametrize("rows", [1, CHAIN_ROWS])
@pytest.mark.parametrize("live", [1, 3, SLOTS])
def test_a_replay_reads_its_own_lengths_and_slots(attention: Attention, rows: int, live: int) -> None:
    wrapper = wrapper_of(attention, rows)
    for chance in range(5):
        prefix = torch.randint(1, 30, (live,), generator=torch.Generator().manual_seed(chance))
        attention.init_forward_metadata_out_graph(a_pass(rows, prefix, live=live))
        keys = [length + rows for length in (*prefix.tolist(), *[1] * (SLOTS - live))]
        assert wrapper._qo_indptr_buf.tolist() == [rows * slot for slot in range(SLOTS + 1)]
        assert wrapper._paged_kv_indptr_buf.diff().tolist() == keys
        names = [*range(1, live + 1), *[0] * (SLOTS - live)]
        slots = [1000 * name + slot for name, length in zip(names, keys, strict=True) for slot in range(length)]
        assert wrapper._paged_kv_indices_buf[: len(slots)].tolist() == slots
        told = wrapper.modules[-1]
        # What is planned on the host is what the device reads, with as many rows of each slot as the graph has.
        assert torch.equal(told[3], wrapper._qo_indptr_buf)
        assert torch.equal(told[4], wrapper._paged_kv_indptr_buf)
        assert told[5].tolist() == keys
        assert told[-1] == rows
        assert len(wrapper.plans) == 1


@pytest.mark.parametrize("live", [1, 3, SLOTS])
def test_a_trees_graph_reads_the_oracles_mask(attention: Attention, live: int) -> None:
    for chance in range(5):
        generator = torch.Generator().manual_seed(chance)
        tree = random_tree(batch=live, rows=TREE_ROWS, vocab=9, generator=generator)
        prefix = torch.randint(1, 30, (live,), generator=generator)
        replay = a_pass(TREE_ROWS, prefix, live=live, words=ancestor_words(tree=tree))
        attention.init_forward_metadata_out_graph(replay)
        keys = wrapper_of(attention, TREE_ROWS, is_tree=True)._paged_kv_indptr_buf.diff().tolist()
        starts = attention.cuda_graph_qk_indptr[0].tolist()
        for slot in range(SLOTS):
            packed = attention.cuda_graph_custom_mask[starts[slot] : starts[slot + 1]].numpy()
            bits = np.unpackbits(packed, bitorder="little")[: TREE_ROWS * keys[slot]].reshape(TREE_ROWS, keys[slot])
            counted = 0
            if slot < live:
                counted = int(tree.row_counts[slot])
                table = reference.mask_rows(tree.parents[slot].tolist(), counted, int(prefix[slot]), TREE_ROWS)
                assert bits[:counted].tolist() == np.array(table)[:counted].astype(int).tolist()
                # No live row sees a dead one.
                assert not bits[:counted, int(prefix[slot]) + counted :].any()
            # A softmax over nothing is not a number.
            assert bits[counted:].any(axis=1).all()


def test_one_plans_buffers_serve_all_graphs_and_buckets_stay_apart(
    attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's bucket of as many rows as slots has the same numbers as a step without drafts."""
    equal = wrapper_of(attention, 1)
    monkeypatch.setattr(flashinfer_attention, "get_capture_attention_variant", lambda: CHAIN)
    one = torch.ones(SLOTS, dtype=torch.long)
    bucket = a_pass(1, one, live=SLOTS, in_capture=True)
    bucket.spec_info.ragged_verify_layout = RaggedVerifyLayout.from_verify_lens(
        verify_lens_cpu=[1] * SLOTS, device=torch.device("cpu"), grid=[SLOTS]
    )
    attention.init_forward_metadata_out_graph(bucket, in_capture=True)
    assert wrapper_of(attention, 1) is equal
    assert len(attention._verify_wrappers) == 4
    for part in ("_int_workspace_buffer", "_pin_memory_int_workspace_buffer"):
        assert len({id(getattr(wrapper, part)) for wrapper in attention._verify_wrappers.values()}) == 1


def test_a_plan_differs_from_sglangs_in_the_equal_rows_alone() -> None:
    lengths = Lengths(torch.tensor([4, 9], dtype=torch.int32), torch.full((2,), 3)).host_plan
    qo_indptr, kv_indptr, kv_indices = lengths.qo_indptr.clone(), lengths.kv_indptr.clone(), torch.arange(19)
    wrapper: Any = Wrapper(False, qo_indptr, kv_indptr, kv_indices)
    told: list[tuple[Any, ...]] = []
    wrapper._cached_module = SimpleNamespace(plan=lambda *given: told.append(given))
    wrapper._max_total_num_rows = 6
    heads = SimpleNamespace(
        num_qo_heads=8, num_kv_heads=2, head_dim=64, q_data_type=torch.bfloat16, data_type=torch.float16
    )
    tables = (qo_indptr, kv_indptr, kv_indices, torch.ones(2, dtype=torch.int32))
    kinds = {"q_data_type": heads.q_data_type, "kv_data_type": heads.data_type}
    host = {f"{name}_host": part for name, part in lengths._asdict().items()}
    fast_prefill_plan(wrapper, *tables, 8, 2, 64, 1, **kinds, **host, max_q_len=3, max_kv_len=12)
    theirs_keeps = {
        name: value for name, value in vars(wrapper).items() if name.startswith("_max") or "_cached" in name
    }
    for rows in (None, 3):
        plan_on_host(wrapper, heads, lengths, equal_rows=rows)
        assert {name: vars(wrapper)[name] for name in theirs_keeps} == theirs_keeps
    theirs, different, equal = told
    assert len(theirs) == 20
    assert all(same(*pair) for pair in zip(different, theirs, strict=True))
    assert all(same(*pair) for pair in zip(equal[:-1], theirs[:-1], strict=True))
    assert (theirs[-1], equal[-1]) == (0, 3)


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def test_buffers_are_made_once_for_all_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def stock(self: Any, max_bs: int, max_num_tokens: int, kv_indices_buf: Any = None) -> None:
        made.append(max_num_tokens)
        self.cuda_graph_custom_mask = torch.zeros(1, dtype=torch.uint8)

    monkeypatch.setattr(FlashInferAttnBackend, "init_cuda_graph_state", stock)
    backend = Attention()
    backend._graph_rows = 0
    for rows in (192, 16, 192):
        backend.init_cuda_graph_state(16, rows)
    assert made == [192]
    with pytest.raises(AssertionError, match="fewer rows"):
        backend.init_cuda_graph_state(16, 193)
