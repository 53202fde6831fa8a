"""Graphs of verify passes by requests and rows of a request: which is chosen, and what SGLang then replays."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode
from sglang.srt.model_executor.runner import decode_cuda_graph_runner
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner

from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.serving.engine.graphs import verify_graphs
from sparktier.serving.engine.graphs.verify_graphs import CHAIN, TREE, VerifyGraphs
from sparktier.serving.engine.rank_options import LadderOptions, TreeBounds
from sparktier.serving.engine.speculation import verify_pass, worker
from sparktier.serving.engine.speculation.row_budget import step_budget
from sparktier.serving.engine.speculation.verify_pass import RaggedVerifyInput
from sparktier.serving.engine.speculation.worker import LadderWorker
from support.random_trees import random_tree

BLOCK, WIDTH, SIZES = 5, 12, (1, 2, 4, 8, 12, 16)
LADDER = LadderOptions(short_tokens=2, tree=TreeBounds(rows=WIDTH, parents=4, children=4))
ROWS = {Rung.OFF: 1, Rung.CHAIN_SHORT: 3, Rung.CHAIN: BLOCK + 1, Rung.TREE: WIDTH}


def made_runner(rows: int, *, attention: Any, by_rows_in_all: bool) -> Any:
    """SGLang's graph runner of a target, as far as the choice of a graph goes."""
    graphs = DecodeCudaGraphRunner.__new__(DecodeCudaGraphRunner)
    graphs.captured_req_width, graphs.capture_bs, graphs.max_bs = rows, list(SIZES), max(SIZES)
    graphs.ragged_verify_mode = by_rows_in_all
    graphs.capture_num_tokens = graphs._build_ragged_verify_token_buckets() if by_rows_in_all else None
    graphs.model_runner = SimpleNamespace(spec_algorithm=SimpleNamespace(is_ngram=lambda: False))
    graphs.attn_backend, graphs.capture_hidden_mode = attention, CaptureHiddenMode.FULL
    graphs.require_mlp_tp_gather = graphs.require_mlp_sync = graphs.disable_padding = graphs.enable_pdmux = False
    graphs.is_encoder_decoder = graphs.enable_two_batch_overlap = graphs.record_nolora_graph = False
    return graphs


def made_target(*, shares: bool = True) -> Any:
    """A target whose passes SGLang has captured by rows in all."""
    attention = SimpleNamespace(supports_ragged_verify_graph=True, shares_graph_buffers=shares)
    stock = made_runner(WIDTH, attention=attention, by_rows_in_all=True)
    return SimpleNamespace(decode_cuda_graph_runner=stock, attn_backend=attention)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A target, and the runners that are made in the place of SGLang's constructor."""
    made = made_target()

    def construct(self: Any, model_runner: Any, *, speculative_num_draft_tokens: int) -> None:
        by_rows = decode_cuda_graph_runner.ragged_verify_compact_graphs_enabled(None)
        rows = speculative_num_draft_tokens
        vars(self).update(vars(made_runner(rows, attention=model_runner.attn_backend, by_rows_in_all=by_rows)))
        self.attention_graph_variants = decode_cuda_graph_runner.create_attention_graph_variants(None)

    monkeypatch.setattr(DecodeCudaGraphRunner, "__init__", construct)
    monkeypatch.setattr(decode_cuda_graph_runner, "ragged_verify_compact_graphs_enabled", lambda _algorithm: True)
    return made


def captured(target: Any) -> VerifyGraphs:
    graphs = verify_graphs.capture(target, chains=LADDER.chain_rows(BLOCK), tree=WIDTH)
    assert graphs is not None
    return graphs


def passed(requests: int, rows: int) -> Any:
    """A pass as SGLang asks its runner about it."""
    verify_input = RaggedVerifyInput(torch.zeros(requests * rows), torch.zeros(requests * rows), draft_token_num=rows)
    return SimpleNamespace(
        replace_embeds=None,
        spec_info=verify_input,
        batch_size=requests,
        forward_mode=ForwardMode.TARGET_VERIFY,
        capture_hidden_mode=CaptureHiddenMode.FULL,
    )


@pytest.mark.parametrize("rung", list(Rung))
def test_each_rung_has_a_graph_for_each_number_of_requests(target: Any, rung: Rung) -> None:
    graphs, stock = captured(target), target.decode_cuda_graph_runner
    for requests in range(1, max(SIZES) + 1):
        room = torch.full((requests,), 100)
        budget = step_budget(EnginePlan(rung=rung), LADDER, block_tokens=BLOCK, caps=room, room=room)
        counts = budget.most_rows.tolist()
        graph = graphs.choose(counts, branching=budget.branching)
        assert graph is not None
        assert (graph.rows, graph.is_tree) == (ROWS[rung], rung == Rung.TREE)
        with graphs.replaying(graph):
            runner = target.decode_cuda_graph_runner
            assert runner.can_run_graph(passed(requests, graph.rows))
            assert not stock.can_run_graph(passed(requests, graph.rows))
            padded = runner._pad_to_bucket(requests, runner.capture_bs)
            assert runner._capture_graph_size(bs=padded, num_tokens=padded * graph.rows) == padded
            assert runner._resolve_attention_variant(None, padded) == (TREE if graph.is_tree else CHAIN)
        assert target.decode_cuda_graph_runner is stock
    assert graphs.choose([ROWS[rung]] * (max(SIZES) + 1), branching=rung == Rung.TREE) is None


@given(counts=st.lists(st.integers(1, WIDTH), min_size=1, max_size=20), branching=st.booleans())
def test_no_pass_has_more_rows_than_in_sglangs_buckets(counts: list[int], branching: bool) -> None:
    target = made_target()
    attention = target.attn_backend
    runners = {
        (kind, rows): made_runner(rows, attention=attention, by_rows_in_all=False)
        for kind, rows in ((CHAIN, 1), (CHAIN, 3), (CHAIN, 6), (TREE, WIDTH))
    }
    graph = VerifyGraphs(target, runners).choose(counts, branching=branching)
    bucket = verify_graphs.bucket_rows(target, requests=len(counts), rows=sum(counts))
    fits = max(counts) <= 6 or branching
    if graph is None:
        assert len(counts) > max(SIZES) or not fits or bucket is not None
        return
    assert graph.rows >= max(counts)
    assert graph.is_tree == (branching and max(counts) > 1)
    padded = graph.runner._pad_to_bucket(len(counts), list(SIZES)) * graph.rows
    assert bucket is None or padded <= bucket


def test_a_row_budget_keeps_the_smaller_bucket(target: Any) -> None:
    graphs = captured(target)
    assert graphs.choose([12, 1, 1, 1, 1, 1, 1, 1], branching=True) is None
    assert graphs.choose([12, 12, 12, 12, 12, 12, 12, 11], branching=True) is not None
    # Requests at their ends, for which nothing is drafted.
    alone = graphs.choose([1, 1], branching=True)
    assert alone is not None
    assert (alone.rows, alone.is_tree) == (1, False)


def test_graphs_are_captured_with_equal_rows_beside_sglangs(target: Any) -> None:
    stock_variants = decode_cuda_graph_runner.create_attention_graph_variants
    graphs = captured(target)
    made = [(graph.rows, graph.runner.attention_graph_variants.capture_labels) for graph in graphs._graphs]
    assert sorted(made) == [(1, (CHAIN,)), (3, (CHAIN,)), (6, (CHAIN,)), (12, (TREE,))]
    assert not any(graph.runner.ragged_verify_mode for graph in graphs._graphs)
    assert decode_cuda_graph_runner.ragged_verify_compact_graphs_enabled(None)
    assert decode_cuda_graph_runner.create_attention_graph_variants is stock_variants


def test_no_graphs_are_captured_over_buffers_that_each_runner_makes_anew(target: Any) -> None:
    target.attn_backend.shares_graph_buffers = False
    assert verify_graphs.capture(target, chains=[1], tree=None) is None
    target.decode_cuda_graph_runner = None
    assert verify_graphs.capture(target, chains=[1], tree=None) is None


@pytest.mark.parametrize(("device", "attention_groups", "captures"), [("meta", 0, 1), ("cpu", 0, 0), ("meta", 1, 0)])
def test_a_worker_captures_them_on_a_gpu_without_attention_groups(
    monkeypatch: pytest.MonkeyPatch, device: str, attention_groups: int, captures: int
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(worker.DSparkWorkerV2, "init_cuda_graphs", lambda _self: None)
    monkeypatch.setattr(worker, "get_parallel", lambda: SimpleNamespace(attn_dp_enabled=bool(attention_groups)))
    monkeypatch.setattr(worker, "replace", lambda step, **change: (step, change))
    monkeypatch.setattr(verify_graphs, "capture", lambda runner, **shapes: asked.append(shapes))
    made: Any = object.__new__(LadderWorker)
    made.device, made.options, made.gamma, made.decode_step = device, LADDER, BLOCK, None
    made._target_worker = SimpleNamespace(model_runner=None)
    made.init_cuda_graphs()
    assert asked == [{"chains": [1, 3, 6], "tree": WIDTH}] * captures


def test_equal_rows_are_the_first_of_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = random_tree(batch=3, rows=WIDTH, vocab=50, generator=torch.Generator().manual_seed(1))
    slots = torch.arange(3 * WIDTH).view(3, WIDTH) + 100
    target = made_target()
    chosen = verify_graphs.VerifyGraph(object(), 6, False)
    seen: dict[str, Any] = {}

    def forward(*, batch: Any, verify_input: Any, **_: Any) -> Any:
        seen.update(verify=verify_input, lengths=batch.seq_lens_cpu, runner=target.decode_cuda_graph_runner)
        logits = torch.arange(len(verify_input.draft_token))
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits, hidden_states=logits))

    graphs = VerifyGraphs(target, {})
    monkeypatch.setattr(graphs, "choose", lambda counts, branching: chosen)
    executor = SimpleNamespace(target_worker=SimpleNamespace(model_runner=target), _forward_prepared_verify=forward)
    lengths = torch.tensor([5, 9, 20])
    batch = SimpleNamespace(seq_lens=lengths, seq_lens_cpu=lengths, seq_lens_sum=34)
    window = SimpleNamespace(verify_cache_loc_2d=slots, kv_loc_plan=None)
    verified = verify_pass.run(
        executor=executor,
        batch=batch,
        window=window,
        tree=tree,
        row_counts=[6, 2, 1],
        branching=True,
        graphs=graphs,
    )
    given_input = seen["verify"]
    assert given_input.draft_token.tolist() == tree.tokens[:, :6].flatten().tolist()
    assert given_input.positions.tolist() == (lengths.unsqueeze(1) + tree.depths[:, :6]).flatten().tolist()
    assert slots[:, given_input.kv_loc_cols].shape == (3, 6)
    assert (given_input.num_tokens_per_req, given_input.ragged_verify_layout) == (6, None)
    assert given_input.ancestor_words is None
    assert seen["lengths"].tolist() == [11, 15, 26]
    assert seen["runner"] is chosen.runner
    assert verified.first.tolist() == [0, 6, 12]
    assert verified.logits[verified.first[verified.requests] + verified.rows].tolist() == list(range(18))
