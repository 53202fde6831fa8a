"""One forward of the target over rows of chains or trees in SGLang's verify mode: what its attention is told."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from msgspec import structs
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.speculative.dflash_info import DFlashVerifyInput
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout
from torch import Tensor

from sparktier.kernels.draft_tree import NO_ROW, DraftTree
from sparktier.kernels.mask import ancestor_words, flat_mask
from sparktier.serving.engine.graphs.verify_graphs import VerifyGraph, VerifyGraphs, bucket_rows
from sparktier.serving.engine.plan.group_step import GroupStep

_MOST_PACKINGS = 64
_HOST = torch.device("cpu")


@dataclass
class RaggedVerifyInput(DFlashVerifyInput):
    """SGLang's verify input with who sees whom beside it.

    ancestor_words: [batch, width, words] int32 as `kernels.mask` makes them; None for chains, which are causal.
    group_step: whose rows SGLang is told that the groups' passes have; None where there is one group.
    """

    ancestor_words: Tensor | None = None
    group_step: GroupStep | None = None

    def generate_attn_arg_prefill(self, *, paged_kernel_lens: Tensor, **rest: Any) -> tuple[Tensor, ...]:
        """Page table and lengths for SGLang's FlashInfer backend, which takes trees by a mask. `paged_kernel_lens`: of
        the committed tokens."""
        indices, indptr, qo_indptr, mask = super().generate_attn_arg_prefill(
            paged_kernel_lens=paged_kernel_lens, **rest
        )
        if self.ancestor_words is not None:
            layout = self.ragged_verify_layout
            equal = torch.full_like(paged_kernel_lens, self.draft_token_num)
            rows = (equal if layout is None else layout.verify_lens).long()
            mask = flat_mask(words=self.ancestor_words, row_counts=rows, prefix_lens=paged_kernel_lens.long())
        return indices, indptr, qo_indptr, mask


class Verified(NamedTuple):
    """logits [n, V] and hidden [n, features] of the rows; request b's row j is at `first[b] + j`.

    requests, rows [live rows] int64: every live row, request by request; dead ones are among them where requests have
    equal rows.
    """

    result: Any
    logits: Tensor
    hidden: Tensor
    first: Tensor
    requests: Tensor
    rows: Tensor


class _Packing(NamedTuple):
    """Where every live row is, as in `Verified`; steps share it, so it must not be written to."""

    layout: RaggedVerifyLayout
    requests: Tensor
    rows: Tensor
    first: Tensor


def run(
    *,
    executor: Any,
    batch: Any,
    window: Any,
    tree: DraftTree,
    row_counts: Sequence[int],
    branching: bool,
    words: Tensor | None = None,
    graphs: VerifyGraphs | None = None,
    group_step: GroupStep | None = None,
) -> Verified:
    """Verify the first `row_counts` rows of each request's `tree`, which take the first slots of its `window`.

    They may be more than the tree has: padding rows are verified too, and nothing comes of them. `branching` says
    whether the tree may have more than one branch; `words` are its `ancestor_words`, if they are known; `graphs` are
    those of equal rows a request; `group_step` is what all groups run, its rows padded. Source of the sequence:
    `_run_ragged` and `run_compact` of SGLang's `dspark_components/dspark_verify.py`, which verifies chains only.
    """
    counts = list(row_counts)
    if branching and words is None:
        words = ancestor_words(tree=tree)
    if graphs is not None and (graph := graphs.choose(counts, branching=branching)) is not None:
        with graphs.replaying(graph):
            return _equal_rows(executor, batch, window, tree, words, graph)
    total = graph_rows(executor.target_worker.model_runner, requests=len(counts), rows=sum(counts))
    if group_step is not None:
        total = group_step.rows
    layout, requests, rows, first = _packed(tuple(counts), total, tree.tokens.device)
    width = window.verify_cache_loc_2d.shape[1]
    spare = total - len(rows)
    verify_input = RaggedVerifyInput(
        draft_token=_filled(tree.tokens[requests, rows], spare),
        positions=_filled(batch.seq_lens[requests] + tree.depths[requests, rows], spare),
        draft_token_num=width,
        custom_mask=None,
        capture_hidden_mode=CaptureHiddenMode.FULL,
        ragged_verify_layout=layout,
        live_seq_lens_cpu=batch.seq_lens_cpu,
        kv_loc_plan=window.kv_loc_plan,
        kv_loc_cols=_filled(requests * width + rows, spare, NO_ROW),
        ancestor_words=words if branching else None,
        group_step=group_step,
    )
    # Slot 0 is SGLang's scratch slot, here for padding rows.
    batch.out_cache_loc = _filled(window.verify_cache_loc_2d[requests, rows], spare)
    result = _forward(executor, batch, verify_input, counts)
    output = result.logits_output
    return Verified(result, output.next_token_logits, output.hidden_states, first, requests, rows)


def _equal_rows(
    executor: Any, batch: Any, window: Any, tree: DraftTree, words: Tensor | None, graph: VerifyGraph
) -> Verified:
    """Verify as many rows of each request as `graph` has. They have slots of their own, and none sees a dead one."""
    requests, width = len(tree.tokens), graph.rows
    tokens, depths = tree.tokens[:, :width], tree.depths[:, :width]
    verify_input = RaggedVerifyInput(
        draft_token=tokens.flatten(),
        positions=(batch.seq_lens.unsqueeze(1) + depths).flatten(),
        draft_token_num=width,
        custom_mask=None,
        capture_hidden_mode=CaptureHiddenMode.FULL,
        live_seq_lens_cpu=batch.seq_lens_cpu,
        kv_loc_plan=window.kv_loc_plan,
        kv_loc_cols=slice(width),
        ancestor_words=words if graph.is_tree else None,
    )
    # SGLang takes the graph's columns of it.
    batch.out_cache_loc = window.verify_cache_loc_2d.view(-1)
    result = _forward(executor, batch, verify_input, [width] * requests)
    output = result.logits_output
    first, owners, rows = _in_step(requests, width, tree.tokens.device)
    return Verified(result, output.next_token_logits, output.hidden_states, first, owners, rows)


@functools.lru_cache(maxsize=_MOST_PACKINGS)
def _in_step(requests: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """First rows, and requests and rows of all rows, where each request has `width` of them."""
    each = torch.arange(requests * width, device=device)
    return torch.arange(0, requests * width, width, device=device), each // width, each % width


def graph_rows(model_runner: Any, *, requests: int, rows: int) -> int:
    """Return how many rows a pass over `rows` of `requests` has: up to the next captured graph's, if one fits them."""
    bucket = bucket_rows(model_runner, requests=requests, rows=rows)
    return rows if bucket is None else bucket


def _filled(values: Tensor, spare: int, value: int = 0) -> Tensor:
    return torch.nn.functional.pad(values, (0, spare), value=value) if spare else values


@functools.lru_cache(maxsize=_MOST_PACKINGS)
def _packed(counts: tuple[int, ...], total: int, device: torch.device) -> _Packing:
    """How `counts` rows of each request are packed into `total`. Small batches and drafting nothing repeat it.

    Made on the host and copied in one piece of each type, as a copy of Python's numbers would wait for the device.
    """
    layout = RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=counts, device=_HOST, grid=[total])
    first = layout.extend_start_loc.long()
    requests = torch.repeat_interleave(torch.arange(len(counts)), layout.verify_lens.long())
    rows = torch.arange(sum(counts)) - first[requests]
    lens, starts, indptr = _moved((layout.verify_lens, layout.extend_start_loc, layout.qo_indptr_device), device)
    layout = structs.replace(layout, verify_lens=lens, extend_start_loc=starts, qo_indptr_device=indptr)
    return _Packing(layout, *_moved((requests, rows, first), device))


def _moved(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    return torch.split(torch.cat(tuple(parts)).to(device, non_blocking=True), [len(part) for part in parts])


def _forward(executor: Any, batch: Any, verify_input: RaggedVerifyInput, counts: list[int]) -> Any:
    """Run the pass with host lengths that include the rows, as SGLang's attention wants them there."""
    lengths, total = batch.seq_lens_cpu, batch.seq_lens_sum
    if lengths is not None:
        batch.seq_lens_cpu = lengths + torch.tensor(counts, dtype=lengths.dtype)
        batch.seq_lens_sum = int(batch.seq_lens_cpu.sum())
    return executor._forward_prepared_verify(
        batch=batch, verify_input=verify_input, seq_lens_cpu_backup=lengths, seq_lens_sum_backup=total
    )
