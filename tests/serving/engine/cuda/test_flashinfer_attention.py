"""Ragged verify passes inside graphs: what FlashInfer would be told, held to slow oracles and to its real signatures.

The kernels need a GPU, so wrappers are stand-ins that bind each call to the installed release's signature.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.layers.attention import attention_registry
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.runner import decode_cuda_graph_runner
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout, build_capture_verify_lens

from sparktier.configs.step_times import reference_table
from sparktier.kernels.draft_tree import DraftTree
from sparktier.kernels.mask import ancestor_words
from sparktier.kernels.reference import tree as reference
from sparktier.serving.engine.cuda import flashinfer_attention as gpu_attention
from sparktier.serving.engine.cuda.flashinfer_attention import (
    DraftVariants,
    GraphKey,
    VerifyVariants,
    install,
)
from sparktier.serving.engine.graphs.verify_graphs import CHAIN, TREE
from sparktier.serving.engine.rank_options import LadderOptions, PlannerOptions, RankOptions, TreeBounds
from sparktier.serving.engine.speculation import worker as worker_module
from sparktier.serving.engine.speculation.draft_step import DraftStep
from sparktier.serving.engine.speculation.draft_tail import CHAIN_TAIL, TREE_TAIL, VARIANT, DraftTail
from sparktier.serving.engine.speculation.edge_acceptance import EdgeTable
from sparktier.serving.engine.speculation.worker import LadderWorker
from support.launches.attention import SLOTS, Attention, Wrapper
from support.random_trees import random_tree

DECODE_SIZES = SimpleNamespace(decode=SimpleNamespace(bs=[1, 2, 4]))
WIDTH, BUCKET = 6, 24


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> Attention:
    backend = Attention()
    lengths = build_capture_verify_lens(num_tokens=BUCKET, num_slots=SLOTS, num_draft_tokens=WIDTH)
    ones = torch.ones(SLOTS, dtype=torch.int32)
    for label in VerifyVariants.capture_labels:
        monkeypatch.setattr(gpu_attention, "get_capture_attention_variant", lambda label=label: label)
        batch = a_batch(layout(lengths), torch.arange(SLOTS), ones, ones)
        backend.init_forward_metadata_out_graph(batch, in_capture=True)
    return backend


def layout(counts: list[int]) -> RaggedVerifyLayout:
    return RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=counts, device=torch.device("cpu"), grid=[BUCKET])


def a_batch(rows: RaggedVerifyLayout, requests: Any, seq_lens: Any, seq_lens_cpu: Any, words: Any = None) -> Any:
    return SimpleNamespace(
        batch_size=SLOTS,
        forward_mode=ForwardMode.TARGET_VERIFY,
        req_pool_indices=requests,
        seq_lens=seq_lens,
        seq_lens_cpu=seq_lens_cpu,
        kv_loc_plan=None,
        spec_info=SimpleNamespace(ragged_verify_layout=rows, ancestor_words=words),
    )


def a_replay(tree: DraftTree, prefix: torch.Tensor, *, branching: bool, host_lengths: bool = True) -> Any:
    """As `build_replay_fb_view` makes it: empty slots are request 0 with one token."""
    empty = SLOTS - len(prefix)
    counts = tree.row_counts
    on_host = torch.cat([prefix + counts, torch.ones(empty, dtype=torch.long)])
    return a_batch(
        layout(counts.tolist()),
        torch.cat([torch.arange(1, len(prefix) + 1), torch.zeros(empty, dtype=torch.long)]),
        torch.cat([prefix, torch.ones(empty, dtype=torch.long)]),
        on_host if host_lengths else None,
        ancestor_words(tree=tree) if branching else None,
    )


def wrapper_of(attention: Attention, masked: bool) -> Wrapper:
    wrapper: Wrapper = attention._verify_wrappers[GraphKey(SLOTS, None, BUCKET, masked)]
    assert wrapper.masked == masked
    return wrapper


@pytest.mark.parametrize("branching", [True, False])
@pytest.mark.parametrize("host_lengths", [True, False])
@pytest.mark.parametrize("requests", [1, 3, SLOTS])
def test_a_replay_is_told_its_own_lengths_and_slots(
    attention: Attention, requests: int, host_lengths: bool, branching: bool
) -> None:
    for chance in range(5):
        generator = torch.Generator().manual_seed(chance)
        tree = random_tree(batch=requests, rows=4, vocab=9, generator=generator)
        prefix = torch.randint(1, 30, (requests,), generator=generator)
        replay = a_replay(tree, prefix, branching=branching, host_lengths=host_lengths)
        attention.init_forward_metadata_out_graph(replay)
        wrapper = wrapper_of(attention, branching)
        rows, keys = wrapper._qo_indptr_buf.diff().tolist(), wrapper._paged_kv_indptr_buf.diff().tolist()
        assert rows[: requests - 1] == tree.row_counts[:-1].tolist()
        assert rows[requests - 1] >= tree.row_counts[-1]
        assert sum(rows) == BUCKET
        committed = prefix.tolist() + [1] * (SLOTS - requests)
        assert keys == [prefix + row for prefix, row in zip(committed, rows, strict=True)]
        # What is planned on the host is what the device reads.
        told = wrapper.modules[-1]
        assert torch.equal(told[3], wrapper._qo_indptr_buf)
        assert torch.equal(told[4], wrapper._paged_kv_indptr_buf)
        assert told[5].tolist() == keys
        assert (wrapper._max_q_len, wrapper._max_kv_len) == (max(rows), max(keys))
        assert told[-1] == 0, "rows differ"
        names = [*range(1, requests + 1), *[0] * (SLOTS - requests)]
        slots = [1000 * name + slot for name, length in zip(names, keys, strict=True) for slot in range(length)]
        assert wrapper._paged_kv_indices_buf[: len(slots)].tolist() == slots


@pytest.mark.parametrize("requests", [1, 3, SLOTS])
def test_a_trees_graph_reads_the_oracles_mask(attention: Attention, requests: int) -> None:
    for chance in range(5):
        generator = torch.Generator().manual_seed(chance)
        tree = random_tree(batch=requests, rows=4, vocab=9, generator=generator)
        prefix = torch.randint(1, 30, (requests,), generator=generator)
        attention.init_forward_metadata_out_graph(a_replay(tree, prefix, branching=True))
        wrapper = wrapper_of(attention, True)
        rows, keys = wrapper._qo_indptr_buf.diff().tolist(), wrapper._paged_kv_indptr_buf.diff().tolist()
        starts = attention.cuda_graph_qk_indptr[0].tolist()
        for slot in range(SLOTS):
            packed = attention.cuda_graph_custom_mask[starts[slot] : starts[slot + 1]].numpy()
            bits = np.unpackbits(packed, bitorder="little")[: rows[slot] * keys[slot]].reshape(rows[slot], keys[slot])
            live = 0
            if slot < requests:
                live = int(tree.row_counts[slot])
                table = reference.mask_rows(tree.parents[slot].tolist(), live, int(prefix[slot]), rows[slot])
                assert bits[:live].tolist() == np.array(table)[:live].astype(int).tolist()
            # A softmax over nothing is not a number.
            assert bits[live:].any(axis=1).all()


def test_chains_and_trees_have_a_graph_each(attention: Attention) -> None:
    tree = random_tree(batch=3, rows=4, vocab=9, generator=torch.Generator().manual_seed(0))
    prefix = torch.tensor([4, 5, 6])
    replays = {label: a_replay(tree, prefix, branching=label == TREE) for label in (CHAIN, TREE)}
    for label, replay in replays.items():
        assert VerifyVariants().select(replay) == label
        attention.init_forward_metadata_out_graph(replay)
    assert [len(wrapper_of(attention, masked).modules) for masked in (False, True)] == [2, 2]


def test_other_passes_are_left_to_sglang(attention: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, bool]] = []
    stock = "init_forward_metadata_out_graph"
    monkeypatch.setattr(
        FlashInferAttnBackend, stock, lambda self, batch, in_capture=False: seen.append((batch, in_capture))
    )
    attention._is_draft = True
    draft = SimpleNamespace(
        forward_mode=ForwardMode.TARGET_VERIFY, spec_info=SimpleNamespace(ragged_verify_layout=None)
    )
    attention.init_forward_metadata_out_graph(draft, in_capture=True)
    assert seen == [(draft, True)]


def test_windows_and_cross_attention_run_without_graphs(attention: Attention) -> None:
    assert attention.supports_ragged_verify_graph
    attention.dispatch_reason = "sliding window"
    assert not attention.supports_ragged_verify_graph


def test_it_takes_flashinfers_place_and_draft_models_get_no_second_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_registry, "ATTENTION_BACKENDS", dict(attention_registry.ATTENTION_BACKENDS))
    monkeypatch.setattr(decode_cuda_graph_runner, "create_attention_graph_variants", lambda config: "stock")
    stock = attention_registry.ATTENTION_BACKENDS["flashinfer"]
    install(trees=False, proposals=True)
    assert attention_registry.ATTENTION_BACKENDS["flashinfer"] is not stock
    target, draft = (SimpleNamespace(architectures=[name]) for name in ("Qwen3MoeForCausalLM", "Qwen3DSparkModel"))
    assert decode_cuda_graph_runner.create_attention_graph_variants(target) == "stock"
    monkeypatch.setattr(decode_cuda_graph_runner, "create_attention_graph_variants", lambda config: "stock")
    install(trees=True, proposals=False)
    assert decode_cuda_graph_runner.create_attention_graph_variants(target) == VerifyVariants()
    assert decode_cuda_graph_runner.create_attention_graph_variants(draft) == "stock"
    monkeypatch.setattr(decode_cuda_graph_runner, "create_attention_graph_variants", lambda config: "stock")
    install(trees=True, proposals=True)
    assert decode_cuda_graph_runner.create_attention_graph_variants(target) == VerifyVariants()
    assert decode_cuda_graph_runner.create_attention_graph_variants(draft) == DraftVariants()


def test_sglang_folds_no_drafting_of_its_own_into_the_drafts_graphs() -> None:
    # Its sampler asserts a window as wide as the block, and would draft a chain at every replay.
    worker = object.__new__(LadderWorker)
    worker.device = "cpu"
    assert worker._maybe_build_draft_sampler() is None


@pytest.mark.parametrize(
    ("rule", "live", "captures"),
    [("match", None, True), ("match", False, True), ("match", True, False), ("ratio", None, False)],
)
def test_graphs_go_on_to_the_rows_to_verify_unless_these_wait_or_are_drawn(
    monkeypatch: pytest.MonkeyPatch, rule: Any, live: bool | None, captures: bool
) -> None:
    planner = None if live is None else PlannerOptions(table=reference_table("avx2"), live=live)
    tree = TreeBounds(rows=12, parents=4, children=4)
    options = RankOptions(ladder=LadderOptions(short_tokens=2, accept_rule=rule, tree=tree), planner=planner)
    monkeypatch.setattr(worker_module, "rank_options", lambda: options)
    monkeypatch.setattr(
        worker_module, "get_exec", lambda: SimpleNamespace(graph=SimpleNamespace(cuda_graph_config=DECODE_SIZES))
    )
    worker = object.__new__(LadderWorker)
    worker.device, worker.options, worker.pacer = "meta", options.ladder, None
    worker.gamma = worker.query_token_num = 5
    worker._drafter = DraftStep(worker, EdgeTable([(1.0, 0.0)] * 3, device=torch.device("cpu")), needs_trees=False)
    assert isinstance(worker._maybe_build_draft_sampler(), DraftTail) == captures


def test_each_kind_of_draft_has_plans_of_its_own(attention: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang keeps one for each number of requests, and a graph reads the buffers of the plan it was captured with."""

    def stock(self: Attention, batch: Any, in_capture: bool = False) -> None:
        if in_capture:
            self.prefill_cuda_graph_metadata[batch.batch_size] = object()
        used.append(self.prefill_cuda_graph_metadata[batch.batch_size])

    attention._is_draft = True
    used: list[object] = []
    monkeypatch.setattr(FlashInferAttnBackend, "init_forward_metadata_out_graph", stock)
    block = SimpleNamespace(ragged_verify_layout=None)
    draft = SimpleNamespace(forward_mode=ForwardMode.TARGET_VERIFY, spec_info=block, batch_size=4)
    for kind in DraftVariants.capture_labels:
        monkeypatch.setattr(gpu_attention, "get_capture_attention_variant", lambda kind=kind: kind)
        attention.init_forward_metadata_out_graph(draft, in_capture=True)
    for kind in (TREE_TAIL, CHAIN_TAIL, TREE_TAIL):
        setattr(block, VARIANT, kind)
        assert DraftVariants().select(draft) == kind
        attention.init_forward_metadata_out_graph(draft)
    chain, tree = used[:2]
    assert used[2:] == [tree, chain, tree]


def test_a_draft_of_chains_alone_has_one_plan_for_each_size(
    attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(
        FlashInferAttnBackend,
        "init_forward_metadata_out_graph",
        lambda self, batch, in_capture=False: seen.append(self.prefill_cuda_graph_metadata),
    )
    monkeypatch.setattr(gpu_attention, "get_capture_attention_variant", lambda: None)
    attention._is_draft = True
    block = SimpleNamespace(ragged_verify_layout=None)
    draft = SimpleNamespace(forward_mode=ForwardMode.TARGET_VERIFY, spec_info=block, batch_size=4)
    attention.init_forward_metadata_out_graph(draft, in_capture=True)
    setattr(block, VARIANT, CHAIN_TAIL)
    attention.init_forward_metadata_out_graph(draft)
    assert seen[0] is seen[1]
