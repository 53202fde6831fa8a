"""Rows of a verify pass under graphs: padded to a bucket that SGLang has captured, or none; live rows as without."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.speculative import spec_utils
from sglang.srt.speculative.draft_worker_common import make_draft_block_spec_info
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

from sparktier.kernels.draft_tree import NO_ROW
from sparktier.serving.engine.algorithm import SparktierAlgorithm
from sparktier.serving.engine.speculation import verify_pass
from sparktier.serving.engine.speculation.verify_pass import graph_rows
from sparktier.serving.engine.speculation.worker import LadderWorker
from support.random_trees import random_tree

WIDTH = 6


def captured(*sizes: int, ragged_attention: bool = True) -> Any:
    """A model runner as far as graphs go, with SGLang's own rules for `sizes` of batches."""
    graphs = DecodeCudaGraphRunner.__new__(DecodeCudaGraphRunner)
    graphs.ragged_verify_mode, graphs.captured_req_width = True, WIDTH
    graphs.capture_bs, graphs.max_bs = list(sizes), max(sizes)
    graphs.capture_num_tokens = graphs._build_ragged_verify_token_buckets()
    graphs.attn_backend = SimpleNamespace(supports_ragged_verify_graph=ragged_attention)
    graphs.require_mlp_sync = graphs.is_encoder_decoder = False
    graphs.capture_hidden_mode = CaptureHiddenMode.FULL
    return SimpleNamespace(decode_cuda_graph_runner=graphs, attn_backend=graphs.attn_backend)


@given(counts=st.lists(st.integers(1, WIDTH), min_size=1, max_size=24))
def test_what_sglang_would_replay_fills_a_captured_bucket(counts: list[int]) -> None:
    # Its runner asserts that; rows in between ended the rank.
    runner = captured(1, 2, 4, 8, 16)
    graphs = runner.decode_cuda_graph_runner
    total = graph_rows(runner, requests=len(counts), rows=sum(counts))
    layout = RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=counts, device=torch.device("cpu"), grid=[total])
    batch = SimpleNamespace(batch_size=len(counts), capture_hidden_mode=CaptureHiddenMode.FULL)
    replays = graphs._can_run_ragged_verify_graph(batch, layout)
    assert replays == (len(counts) <= 16)
    if replays:
        assert layout.graph_num_tokens == graphs._ragged_graph_num_tokens(layout.graph_num_tokens)
        assert layout.graph_num_tokens < sum(counts) + 8 * WIDTH
    else:
        assert total == sum(counts)


def test_nothing_is_padded_without_graphs() -> None:
    assert graph_rows(SimpleNamespace(decode_cuda_graph_runner=None), requests=3, rows=7) == 7
    assert graph_rows(captured(4, ragged_attention=False), requests=3, rows=7) == 7


@pytest.mark.parametrize("graphs", [True, False])
def test_padding_leaves_live_rows_alone(graphs: bool) -> None:
    tree = random_tree(batch=3, rows=WIDTH, vocab=50, generator=torch.Generator().manual_seed(1))
    counts = tree.row_counts.tolist()
    runner = captured(1, 2, 4, 8) if graphs else SimpleNamespace(decode_cuda_graph_runner=None)
    seen: dict[str, Any] = {}

    def forward(*, batch: Any, verify_input: Any, **_: Any) -> Any:
        seen.update(batch=batch.out_cache_loc, verify=verify_input)
        rows = len(verify_input.draft_token)
        output = SimpleNamespace(next_token_logits=torch.arange(rows), hidden_states=torch.arange(rows))
        return SimpleNamespace(logits_output=output, can_run_cuda_graph=False)

    executor = SimpleNamespace(target_worker=SimpleNamespace(model_runner=runner), _forward_prepared_verify=forward)
    slots = torch.arange(3 * WIDTH).view(3, WIDTH) + 100
    window = SimpleNamespace(verify_cache_loc_2d=slots, kv_loc_plan=None)
    batch = SimpleNamespace(seq_lens=torch.tensor([5, 9, 20]), seq_lens_cpu=torch.tensor([5, 9, 20]), seq_lens_sum=34)
    verified = verify_pass.run(
        executor=executor, batch=batch, window=window, tree=tree, row_counts=counts, branching=True
    )

    total = sum(counts)
    passed = seen["verify"]
    tokens = [int(tree.tokens[i, j]) for i, count in enumerate(counts) for j in range(count)]
    depths = [int(batch.seq_lens[i] + tree.depths[i, j]) for i, count in enumerate(counts) for j in range(count)]
    places = [int(slots[i, j]) for i, count in enumerate(counts) for j in range(count)]
    spare = passed.ragged_verify_layout.graph_num_tokens - total
    assert (spare > 0) == graphs
    assert passed.draft_token.tolist() == tokens + [0] * spare
    assert passed.positions.tolist() == depths + [0] * spare
    assert seen["batch"].tolist() == places + [0] * spare
    assert passed.kv_loc_cols[:total].tolist() == [place - 100 for place in places]
    assert passed.kv_loc_cols[total:].tolist() == [NO_ROW] * spare
    assert passed.ragged_verify_layout.verify_lens_cpu == counts
    assert verified.logits[verified.first].tolist() == [0, counts[0], counts[0] + counts[1]]


class DraftModel(ModelRunner):
    """SGLang's runner of a draft, as far as the width of its graphs goes."""

    def __init__(self, algorithm: Any, *, from_anchor: bool) -> None:
        self.spec_algorithm, self.is_draft_worker = algorithm, True
        config = SimpleNamespace(sample_from_anchor=from_anchor)
        self.model_config = SimpleNamespace(hf_config=config)


def draft_graphs(runner: Any, *sizes: int) -> Any:
    """The draft's graphs of `sizes` requests, as wide as SGLang makes them for a window of WIDTH rows."""
    graphs = DecodeCudaGraphRunner.__new__(DecodeCudaGraphRunner)
    graphs.captured_req_width = runner.decode_num_tokens_per_req(num_draft_tokens=WIDTH)
    graphs.model_runner, graphs.max_bs = runner, max(sizes)
    graphs.ragged_verify_mode = graphs.require_mlp_tp_gather = graphs.disable_padding = False
    graphs.enable_pdmux = graphs.record_nolora_graph = graphs.require_mlp_sync = False
    graphs.is_encoder_decoder = graphs.enable_two_batch_overlap = False
    return graphs


@pytest.mark.parametrize(("block", "from_anchor"), [(5, True), (3, False)])
def test_a_draft_of_any_captured_size_runs_in_its_graph(
    monkeypatch: pytest.MonkeyPatch, block: int, from_anchor: bool
) -> None:
    monkeypatch.setattr(spec_utils, "get_spec", SimpleNamespace)
    algorithm = SparktierAlgorithm("sparktier", lambda _args: object)
    worker: Any = object.__new__(LadderWorker)
    worker.query_token_num = block if from_anchor else block + 1
    worker.draft_model_runner = DraftModel(algorithm, from_anchor=from_anchor)
    passed = make_draft_block_spec_info(draft_token_num=worker.query_token_num, device=torch.device("cpu"))
    hooks: list[Any] = []
    epilogue = SimpleNamespace(capture_hook=hooks)
    hooks.append(epilogue.capture_hook)
    worker._verify_epilogue = epilogue
    worker._target_worker = SimpleNamespace(model_runner=SimpleNamespace(capture_tail_hooks=hooks))
    worker._verify_executor = SimpleNamespace(verify_epilogue=epilogue)

    def replays(requests: int) -> bool:
        graphs = draft_graphs(worker.draft_model_runner, 1, 2, 4, 8)
        batch = SimpleNamespace(replace_embeds=None, spec_info=passed, batch_size=requests)
        return bool(graphs.can_run_graph(batch))

    assert not replays(1), "SGLang captures the window's width"
    worker._use_own_passes()
    assert [requests for requests in range(1, 10) if replays(requests)] == list(range(1, 9))
    assert algorithm.get_num_tokens_per_req_for_target_verify(WIDTH, False) == WIDTH
    assert not hooks
    assert worker._verify_executor.verify_epilogue is None
