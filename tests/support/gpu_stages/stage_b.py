"""Stage B: attention of a verify pass in graphs, through our backend, by requests, rows and context.

The backend is the product's, without a model around it: it makes FlashInfer's wrappers, plans them and writes masks as
in serving. On a CPU nothing of FlashInfer runs; cells tell what its planner would do.
"""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from support.gpu_stages.results import Cell, Figures
from support.gpu_stages.stage_a import events
from support.oracles.flashinfer_tiles import Heads, split

# A rank of Qwen3-30B-A3B on one GPU.
HEADS, HEAD_DIM = Heads(32, 4), 128
MULTIPROCESSORS = 132
_REPLAYS = 50
_WORKSPACE_BYTES = 512 << 20


def cells(dry_run: bool) -> list[Cell]:
    """Return (requests, rows, context) with slots as requests or as rows, with and without a mask."""
    sizes = [(1, 1, 1024), (2, 12, 256)] if dry_run else [
        (users, rows, context)
        for users, context in ((1, 1024), (1, 8192), (4, 1024), (4, 8192), (8, 8192), (16, 1024), (64, 512))
        for rows in (1, 6, 12, 24)
    ]  # fmt: skip
    return [
        {"requests": users, "rows": rows, "context": context, "slots": slots, "masked": masked}
        for users, rows, context in sizes
        for slots in ("requests", "rows")
        for masked in (False, True)
    ]


def measure(cell: Cell) -> Figures:
    """Return GPU ms of one layer's attention beside its tiles; on a CPU the tiles alone."""
    users, rows = cell["requests"], cell["rows"]
    slots = users if cell["slots"] == "requests" else users * rows
    counts, lengths = [rows] * users + [0] * (slots - users), [cell["context"]] * users + [1] * (slots - users)
    keys = [length + count for length, count in zip(lengths, counts, strict=True)]
    tiles = split(
        rows=counts,
        keys=keys,
        heads=HEADS,
        captured_rows=users * rows,
        multiprocessors=MULTIPROCESSORS,
        uniform=cell["slots"] == "requests",
    )
    told = {"tile_rows": tiles.tile_rows, "tiles_a_request": tiles.of_request[0], "key_reads": tiles.read_keys(keys)}
    if not torch.cuda.is_available():
        return {"ran": False, "why": "FlashInfer's kernels need a GPU", **told}
    gpu_ms, planned_tile_rows = replayed_ms(cell, slots=slots)
    return {"gpu_ms": gpu_ms, "planned_tile_rows": planned_tile_rows, **told}


def replayed_ms(cell: Cell, *, slots: int) -> tuple[float, int]:
    """Capture one layer's attention as serving does, and return ms of a replay and the tile that was planned."""
    from sglang.srt.layers.attention.flashinfer_backend import PrefillMetadata  # noqa: F401 - loads the backend

    from sparktier.serving.engine.cuda import flashinfer_attention
    from sparktier.serving.engine.cuda.flashinfer_attention import CHAIN, TREE

    backend = bare_backend(cell, slots=slots)
    label = TREE if cell["masked"] else CHAIN
    total = cell["requests"] * cell["rows"]
    with mock.patch.object(flashinfer_attention, "get_capture_attention_variant", return_value=label):
        backend.init_forward_metadata_out_graph(capture_batch(cell, slots=slots), in_capture=True)
    (wrapper,) = backend.forward_metadata.prefill_wrappers
    q = torch.randn(total, HEADS.query, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    pool = (cell["context"] + cell["rows"] + 1) * slots
    k, v = (torch.randn(pool, HEADS.key_value, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def attend() -> Tensor:
        out: Tensor = wrapper.forward(q, (k, v), causal=True, sm_scale=HEAD_DIM**-0.5)
        return out

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    backend.init_forward_metadata_out_graph(replay_batch(cell, slots=slots))
    begun, ended = events()
    graph.replay()
    begun.record()
    for _ in range(_REPLAYS):
        graph.replay()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / _REPLAYS, int(wrapper._plan_info[3])


def bare_backend(cell: Cell, *, slots: int, device: str = "cuda") -> Any:
    """Return the product's backend with buffers for one graph and no model: each slot has keys of its own."""
    from sparktier.serving.engine.cuda.flashinfer_attention import LadderFlashInfer

    stride = cell["context"] + cell["rows"] + 1
    backend = LadderFlashInfer.__new__(LadderFlashInfer)
    backend.dispatch_reason, backend.num_wrappers, backend.prefill_backend = None, 1, "fa2"
    backend._is_draft = False
    backend.workspace_buffer = torch.empty(
        _WORKSPACE_BYTES if device == "cuda" else 1, dtype=torch.uint8, device=device
    )

    def whole(count: int, value: int = 0) -> Tensor:
        return torch.full((count,), value, dtype=torch.int32, device=device)

    backend.cuda_graph_qo_indptr, backend.cuda_graph_qk_indptr = [whole(slots + 1)], [whole(slots + 1)]
    backend.kv_indptr, backend.kv_last_page_len = [whole(slots + 1)], whole(slots, 1)
    backend.cuda_graph_kv_indices = [whole(stride * slots)]
    bits = cell["rows"] * cell["requests"] * stride + 8 * slots
    backend.cuda_graph_custom_mask = torch.full((bits // 8 + slots + 1,), 255, dtype=torch.uint8, device=device)
    backend.indices_updater_prefill = SimpleNamespace(
        num_qo_heads=HEADS.query,
        num_kv_heads=HEADS.key_value,
        head_dim=HEAD_DIM,
        q_data_type=torch.bfloat16,
        data_type=torch.bfloat16,
    )

    def pack(_plan: Any, *, seq_lens: Tensor, out: Tensor, **_: Any) -> None:
        each = [torch.arange(length) + slot * stride for slot, length in enumerate(seq_lens.tolist())]
        out.copy_(torch.cat(each))

    backend.kv_index_translator = SimpleNamespace(pack_read_stream=pack)
    backend._verify_wrappers, backend.prefill_cuda_graph_metadata = {}, {}
    backend._plans = {None: backend.prefill_cuda_graph_metadata}
    return backend


def capture_batch(cell: Cell, *, slots: int, device: str = "cuda") -> Any:
    """Return SGLang's batch of a capture: the cell's rows over all slots, as even as they go."""
    from sglang.srt.speculative.ragged_verify import build_capture_verify_lens

    rows = cell["rows"]
    counts = build_capture_verify_lens(num_tokens=cell["requests"] * rows, num_slots=slots, num_draft_tokens=rows)
    ones = torch.ones(slots, dtype=torch.int64)
    return _batch(cell, counts, ones, ones, None, device)


def replay_batch(cell: Cell, *, slots: int, device: str = "cuda") -> Any:
    """Return the batch of a replay: the cell's requests, then empty slots of one token."""
    from sparktier.kernels.draft_tree import NO_ROW, DraftTree
    from sparktier.kernels.mask import ancestor_words

    users, rows = cell["requests"], cell["rows"]
    committed = torch.tensor([cell["context"]] * users + [1] * (slots - users))
    on_host = committed + torch.tensor([rows] * users + [0] * (slots - users))
    words = None
    if cell["masked"]:
        # All drafts hang off the anchor.
        parents = torch.zeros(users, rows, dtype=torch.int64)
        parents[:, 0] = NO_ROW
        depths, counts = (parents >= 0).long(), torch.full((users,), rows)
        words = ancestor_words(tree=DraftTree(torch.zeros_like(parents), parents, depths, counts)).to(device)
    return _batch(cell, [rows] * users, committed, on_host, words, device)


def _batch(cell: Cell, counts: list[int], lengths: Tensor, on_host: Tensor, words: Tensor | None, device: str) -> Any:
    """With a slot for each request all have equal rows, which serving tells by a pass without a layout."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

    layout = None
    if cell["slots"] == "rows":
        total = cell["requests"] * cell["rows"]
        layout = RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=counts, device=torch.device(device), grid=[total])
    return SimpleNamespace(
        batch_size=len(lengths),
        num_padding=0,
        forward_mode=ForwardMode.TARGET_VERIFY,
        req_pool_indices=torch.arange(len(lengths), device=device),
        seq_lens=lengths.to(device),
        seq_lens_cpu=on_host,
        kv_loc_plan=None,
        spec_info=SimpleNamespace(ragged_verify_layout=layout, draft_token_num=cell["rows"], ancestor_words=words),
    )
