"""Runs SGLang's own DSpark chain under our plan, for targets that take no tree mask: DeepSeek-V4 and MLA."""

from typing import Any

import torch
from sglang.srt.layers.dp_attention import get_dp_tp_group
from sglang.srt.speculative.dspark_components.dspark_config import parse_dspark_draft_config
from sglang.srt.speculative.dspark_components.dspark_worker_v2 import DSparkWorkerV2

from sparktier.configs.errors import ArtifactError
from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.serving.engine.native.planned_verify import planned
from sparktier.serving.engine.plan.in_force import start_plan
from sparktier.serving.engine.rank_options import rank_options
from sparktier.serving.engine.slots.request_slots import SlotTable
from sparktier.serving.engine.speculation.pacing import pacer_of
from sparktier.serving.engine.speculation.step_result import StepCounter, StepRecord
from sparktier.serving.engine.telemetry.spans import spans_of_rank
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats
from sparktier.serving.engine.telemetry.step_phases import Phases


class NativeWorker(DSparkWorkerV2):
    """SGLang's worker; it takes plans if verification is trimmed at run time (`verification: compact`)."""

    highest_rung = Rung.CHAIN

    def __init__(self, **kwargs: Any) -> None:
        with planned():
            super().__init__(**kwargs)
        draft = parse_dspark_draft_config(draft_hf_config=self.draft_model_runner.model_config.hf_config)
        require_trained_block(self.gamma, draft.resolve_gamma())
        self.plan = start_plan(rank_options(), highest=self.highest_rung)
        self.pacer = pacer_of(rank_options())
        self.spec_stats = SpeculationStats(block_tokens=self.gamma)
        self._counter = StepCounter(self.spec_stats, self.pacer, spans_of_rank(self._target_tp_rank))

    @property
    def takes_plans(self) -> bool:
        """Whether verification is trimmed at run time; under SGLang's static mode a plan would change nothing."""
        return bool(self._verify_planner.is_compact_mode)

    def alloc_memory_pool(self, **kwargs: Any) -> None:
        """Allocate the draft's KV pool and the table of request slots."""
        super().alloc_memory_pool(**kwargs)
        slots = self.model_runner.req_to_token_pool.req_to_token.shape[0]
        self.slots = SlotTable(slots, device=torch.device(self.device))
        self._verify_planner.bind(self.slots.tier, pacer=self.pacer, group=get_dp_tp_group())
        if self.pacer is not None or any(terms.cap_tokens is not None for terms in self.plan.tiers.values()):
            self.set_plan(self.plan)

    def set_plan(self, plan: EnginePlan) -> None:
        """Put `plan` in force from the next step on; SGLang calls this between steps, on every rank alike."""
        self.plan = plan
        self._verify_planner.set_plan(plan)

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        """Forget a request that has ended, for whatever reason."""
        super().note_request_finished(rid=rid, natural_stop=natural_stop)
        if self.pacer is not None:
            self.pacer.forget(rid)

    def _forward_prefill(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if not batch.forward_mode.is_idle():
            self.slots.add_requests(batch.reqs, batch.req_pool_indices, plan=self.plan)
        return super()._forward_prefill(batch, *args, **kwargs)

    def _forward_decode(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        self._verify_planner.requests = batch.reqs
        phases = Phases(torch.device(self.device))
        result = super()._forward_decode(batch, *args, **kwargs)
        if not batch.forward_mode.is_idle():
            result.record = self._record(batch, result, phases)
        return result

    def _record(self, batch: Any, result: Any, phases: Phases) -> StepRecord:
        rows = result.cap_lens
        if rows is None:
            rows = torch.full_like(result.accept_lens, self.gamma + 1)
        rows = rows.long()
        tiers = self.slots.tier[batch.req_pool_indices]
        expected = self._verify_planner.expected
        return StepRecord(phases, int(self.plan.rung), tiers, rows, rows - 1, expected=expected)

    def count_step(self, record: StepRecord, accepted: list[int]) -> None:
        """Count a step whose results have reached the host, where reading its record costs no sync."""
        self._counter.count(record, accepted)


def require_trained_block(block_tokens: int, trained_tokens: int | None) -> None:
    """Raise ArtifactError if the block is longer than the draft was trained for; SGLang only logs it."""
    if trained_tokens is not None and block_tokens > trained_tokens:
        raise ArtifactError(
            f"speculation.block_tokens: must be at most the {trained_tokens} that the draft was trained for "
            f"(found {block_tokens}). Lower it, or leave it out."
        )
