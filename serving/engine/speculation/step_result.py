"""What a decode step hands the scheduler: accepted tokens, new lengths, logprobs, the next step's input, its record.

The record is counted once the scheduler has the results on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from sglang.srt.layers.logprob_processor import compute_spec_logprobs
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.speculative.dspark_components.dspark_draft import make_next_draft_input
from sglang.srt.utils.common import async_d2h
from torch import Tensor

from sparktier.kernels.accept import PAD_TOKEN
from sparktier.kernels.accept_tree import TreeAcceptance
from sparktier.kernels.draft_tree import DraftTree
from sparktier.kernels.verify.commit import Commit, commit_of
from sparktier.serving.engine.plan.step_inputs import StepInputs
from sparktier.serving.engine.requests.request_faults import mark
from sparktier.serving.engine.slots.penalty_table import PenaltyTable
from sparktier.serving.engine.speculation.pacing import Pace, Pacer
from sparktier.serving.engine.speculation.verify_pass import Verified
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats
from sparktier.serving.engine.telemetry.step_phases import Phases


@dataclass(frozen=True)
class StepRecord:
    """What is counted of one decode step, with its result or not at all.

    tiers, row_counts, depths [batch]: of each request, on the device until the step's results are read. expected: of
    each, drafted tokens that the planner expects to be accepted; None without one. drawn: whether drafts were drawn.
    padding_rows: of the pass, which no request brought to it.
    pace, survival: a planned step and what its drafts promised, where the planner is told only with the results.
    """

    phases: Phases
    rung: int
    tiers: Tensor
    row_counts: Tensor
    depths: Tensor
    expected: Sequence[float] | None = None
    drawn: bool = False
    pace: Pace | None = None
    survival: Tensor | None = None
    padding_rows: int = 0

    def on_host(self) -> "StepRecord":
        """Return the record with copies of its tensors on the way to the host."""
        survival = None if self.survival is None else async_d2h(self.survival)
        return replace(self, depths=async_d2h(self.depths), survival=survival)

    def told(self) -> Sequence[float] | None:
        """Return `expected`, telling the planner first what drafts promised where that has waited for the results."""
        if self.pace is None or self.survival is None:
            return self.expected
        return self.pace.keep(self.survival, drawn=self.drawn)


@dataclass
class CountedResult(GenerationBatchResult):  # type: ignore[misc]
    """SGLang's result of a decode step, with the record of that step."""

    record: StepRecord | None = None

    def copy_to_cpu(self, *args: Any, **kwargs: Any) -> None:
        """Start copying what the scheduler reads, the record with it."""
        if self.record is not None:
            self.record = self.record.on_host()
        super().copy_to_cpu(*args, **kwargs)


class StepCounter:
    """What one rank counts of its steps. `pacer` None: rows are not paced. `spans` None: none are kept."""

    def __init__(self, stats: SpeculationStats, pacer: Pacer | None, spans: Any) -> None:
        self._stats, self._pacer, self._spans = stats, pacer, spans

    def count(self, record: StepRecord, accepted: list[int]) -> None:
        """Count a step, of whose requests so many drafted tokens were `accepted`; reading its record costs no sync."""
        rows, tiers, expected = record.row_counts.tolist(), record.tiers.tolist(), record.told()
        self._stats.step(
            rung=record.rung,
            phase_ms=record.phases.durations_ms(),
            tiers=tiers,
            rows=rows,
            depths=record.depths.tolist(),
            accepted=accepted,
            expected=expected,
            padding_rows=record.padding_rows,
        )
        if self._pacer is not None and record.drawn and expected is not None:
            self._pacer.accepted(record.rung, tiers, expected, accepted)
        if self._spans is not None:
            attributes = {"rung": record.rung, "requests": len(rows), "rows": sum(rows), "accepted": sum(accepted)}
            self._spans.step(record.phases, attributes)


def commit(inputs: StepInputs, tree: DraftTree, verified: Verified, accepted: TreeAcceptance) -> Commit:
    """Return what is accepted, and publish the requests' new lengths: the next step's preparation on the host waits
    for these alone."""
    committed = commit_of(
        accepted=accepted,
        depths=tree.depths,
        seq_lens=inputs.batch.seq_lens,
        slots=inputs.window.verify_cache_loc_2d,
        first=verified.first,
    )
    if inputs.on_publish is not None:
        inputs.on_publish(committed.new_seq_lens)
    return committed


def step_result(
    inputs: StepInputs,
    verified: Verified,
    accepted: TreeAcceptance,
    committed: Commit,
    record: StepRecord,
    *,
    penalties: PenaltyTable,
    window_rows: int,
) -> CountedResult:
    """Return SGLang's result of a step, and count its tokens in `penalties`.

    Args:
        inputs: of the step.
        verified: the target's pass.
        accepted: of that pass.
        committed: of that pass, already published.
        record: of the step, counted once the result is on the host.
        penalties: of all running requests.
        window_rows: most rows of one request.
    """
    batch = inputs.batch
    if not penalties.idle:
        penalties.count(batch.reqs, batch.req_pool_indices, accepted.tokens, accepted.tokens != PAD_TOKEN)
    tokens, output = committed.tokens, verified.result.logits_output
    if batch.return_logprob:
        _add_logprobs(batch, output, verified, tokens, committed.places)
    output.hidden_states = None
    mark(output, committed.silent)
    return CountedResult(
        record=record,
        logits_output=output,
        next_token_ids=tokens.reshape(-1),
        accept_lens=committed.lengths,
        cap_lens=record.row_counts.to(torch.int32),
        can_run_cuda_graph=verified.result.can_run_cuda_graph,
        next_draft_input=make_next_draft_input(bonus_tokens=committed.anchors, new_seq_lens=committed.new_seq_lens),
        speculative_num_draft_tokens=window_rows,
        speculative_output_stride=tokens.shape[1],
        new_seq_lens=committed.new_seq_lens,
    )


def _add_logprobs(batch: Any, output: Any, verified: Verified, tokens: Tensor, places: Tensor) -> None:
    """Let SGLang compute the logprobs of `tokens` [batch, levels] from the rows at `places`, which predicted them."""
    output.next_token_logits = verified.logits
    predicted = tokens.new_zeros(len(verified.logits)).scatter_(0, places.flatten(), tokens.flatten())
    # Padding shares the anchor's place.
    predicted[places[:, 0]] = tokens[:, 0]
    compute_spec_logprobs(batch, output, predicted, accept_index=places)
