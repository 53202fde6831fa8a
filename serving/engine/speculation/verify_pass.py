"""One forward of the target over ragged rows of chains or trees in SGLang's verify mode: what its attention is told."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from msgspec import structs
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.speculative.dflash_info import DFlashVerifyInput
from sglang.srt.speculative.dspark_components.dspark_planner import (
    ragged_capture_max_slots,
    ragged_capture_num_tokens,
)
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout, round_up_grid
from torch import Tensor

from sparktier.kernels.draft_tree import NO_ROW, DraftTree
from sparktier.kernels.mask import ancestor_words, flat_mask

_MOST_PACKINGS = 64
_HOST = torch.device("cpu")


@dataclass
class RaggedVerifyInput(DFlashVerifyInput):
    """SGLang's verify input with who sees whom beside it.

    ancestor_words: [batch, width, words] int32 as `kernels.mask` makes them; None for chains, which are causal.
    """

    ancestor_words: Tensor | None = None

    def generate_attn_arg_prefill(self, *, paged_kernel_lens: Tensor, **rest: Any) -> tuple[Tensor, ...]:
        """Page table and lengths for SGLang's FlashInfer backend, which takes trees by a mask. `paged_kernel_lens`: of
        the committed tokens."""
        indices, indptr, qo_indptr, mask = super().generate_attn_arg_prefill(
            paged_kernel_lens=paged_kernel_lens, **rest
        )
        if self.ancestor_words is not None and self.ragged_verify_layout is not None:
            rows = self.ragged_verify_layout.verify_lens.long()
            mask = flat_mask(words=self.ancestor_words, row_counts=rows, prefix_lens=paged_kernel_lens.long())
        return indices, indptr, qo_indptr, mask


class Verified(NamedTuple):
    """logits [n, V] and hidden [n, features] of the rows; request b's row j is at `first[b] + j`.

    requests, rows [live rows] int64: every live row, request by request.
    """

    result: Any
    logits: Tensor
    hidden: Tensor
    first: Tensor
    requests: Tensor
    rows: Tensor

    def places(self, path: Tensor) -> Tensor:
        """Where the rows of `path` [batch, levels] are among the packed rows; below its end, the anchor's again."""
        return self.first.unsqueeze(1) + path.clamp(min=0)


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
) -> Verified:
    """Verify the first `row_counts` rows of each request's `tree`, which take the first slots of its `window`.

    They may be more than the tree has: padding rows are verified too, and nothing comes of them. `branching` says
    whether the tree may have more than one branch; `words` are its `ancestor_words`, if they are known. Source of the
    sequence: `_run_ragged` and `run_compact` of SGLang's `dspark_components/dspark_verify.py`, which verifies chains
    only.
    """
    counts = list(row_counts)
    if branching and words is None:
        words = ancestor_words(tree=tree)
    total = graph_rows(executor.target_worker.model_runner, requests=len(counts), rows=sum(counts))
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
    )
    # Slot 0 is SGLang's scratch slot, here for padding rows.
    batch.out_cache_loc = _filled(window.verify_cache_loc_2d[requests, rows], spare)
    result = _forward(executor, batch, verify_input, counts)
    output = result.logits_output
    return Verified(result, output.next_token_logits, output.hidden_states, first, requests, rows)


def graph_rows(model_runner: Any, *, requests: int, rows: int) -> int:
    """Return how many rows a pass over `rows` of `requests` has: up to the next captured graph's, if one fits them.

    Source of the conditions: `_can_run_ragged_verify_graph` of SGLang's `decode_cuda_graph_runner.py`.
    """
    tiers = ragged_capture_num_tokens(model_runner=model_runner)
    if tiers is None or not model_runner.attn_backend.supports_ragged_verify_graph or rows > tiers[-1]:
        return rows
    tier = round_up_grid(rows, tiers)
    return tier if requests <= min(tier, ragged_capture_max_slots(model_runner=model_runner)) else rows


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
