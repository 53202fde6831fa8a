"""Verify passes beside other attention groups': of one size on every rank, whether its group has requests or not."""

from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

from sparktier.serving.engine.graphs.verify_graphs import bucket_rows
from sparktier.serving.engine.plan.group_step import GroupStep
from sparktier.serving.engine.speculation.verify_pass import RaggedVerifyInput


def padded(step: GroupStep, model_runner: Any, batch: Any) -> GroupStep:
    """Return `step` with the rows of the graph that all groups replay; where none fits, `batch` is kept from graphs.

    Every rank finds the same, as all of them know these numbers.
    """
    bucket = bucket_rows(model_runner, requests=step.requests, rows=step.rows)
    batch.can_run_decode_cuda_graph = batch.can_run_decode_cuda_graph and bucket is not None
    return step if bucket is None else step._replace(rows=bucket)


def run_idle(executor: Any, batch: Any, step: GroupStep, *, width: int) -> None:
    """Run a pass for a group without requests, whose experts the others' rows need. `width`: most rows of a request.

    Source: `run_idle_participation` of SGLang's `dspark_components/dspark_verify.py`.
    """
    step = padded(step, executor.model_runner, batch)
    in_graph, device = batch.can_run_decode_cuda_graph, executor.model_runner.device
    rows = step.rows if in_graph else 0
    nothing = torch.zeros(rows, dtype=torch.int64, device=device)
    layout = None
    if in_graph:
        # A graph is replayed by the others, so here too: for one request, in SGLang's scratch slot.
        layout = RaggedVerifyLayout.from_verify_lens(
            verify_lens_cpu=[1], device=torch.device(device), grid=[rows], graph_num_tokens_floor=rows
        )
        batch.seq_lens, batch.req_pool_indices = torch.ones_like(nothing[:1]), torch.zeros_like(nothing[:1])
        batch.seq_lens_cpu, batch.seq_lens_sum = torch.ones(1, dtype=torch.int64), 1
        batch.forward_mode = ForwardMode.TARGET_VERIFY
    batch.out_cache_loc = nothing
    verify_input = RaggedVerifyInput(
        draft_token=nothing,
        positions=nothing,
        draft_token_num=width,
        custom_mask=None,
        capture_hidden_mode=CaptureHiddenMode.FULL,
        ragged_verify_layout=layout,
        live_seq_lens_cpu=batch.seq_lens_cpu,
        group_step=step,
    )
    forward_batch, _ = verify_input.prepare_for_verify(batch, executor.target_worker)
    executor.target_worker.forward_batch_generation(
        batch=None, forward_batch=forward_batch, is_verify=True, skip_attn_backend_init=True
    )


def install() -> None:
    """Have SGLang gather as many rows of each group as its pass has; it would count the window of every request."""
    count, pad = ForwardBatch.init_mlp_sync_metadata, ForwardBatch._pad_inputs_to_size

    def count_rows(self: Any, batch: Any, device: Any, **kwargs: Any) -> None:
        count(self, batch, device, **kwargs)
        if (step := _step_of(self)) is not None:
            rows = step.pass_rows
            self.global_num_tokens_cpu = self.global_num_tokens_for_logprob_cpu = rows
            self.global_num_tokens_gpu = torch.tensor(rows).to(device, non_blocking=True)
            self.global_num_tokens_for_logprob_gpu = self.global_num_tokens_gpu.clone()

    def pad_rows(self: Any, model_runner: Any, num_tokens: int, bs: int) -> None:
        if _step_of(self) is not None:
            # Rows are padded, requests are not: the attention reads how many rows each has.
            bs = self.batch_size = len(self.seq_lens)
        pad(self, model_runner, num_tokens, bs)

    ForwardBatch.init_mlp_sync_metadata, ForwardBatch._pad_inputs_to_size = count_rows, pad_rows


def _step_of(forward_batch: Any) -> GroupStep | None:
    step: GroupStep | None = getattr(forward_batch.spec_info, "group_step", None)
    return step
