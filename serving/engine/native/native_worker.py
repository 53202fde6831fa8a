"""Runs SGLang's own DSpark chain under our plan, for targets that take no tree mask: DeepSeek-V4 and MLA.

SGLang's planner decides how many drafts each request verifies; our plan only lowers that number, by rung, row budget
and tier. SGLang drafts before it plans, so the block is drafted on every rung, `off` included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.speculative.dspark_components import dspark_worker_v2
from sglang.srt.speculative.dspark_components.dspark_config import parse_dspark_draft_config
from sglang.srt.speculative.dspark_components.dspark_planner import DSparkVerifyPlanner
from sglang.srt.speculative.dspark_components.dspark_worker_v2 import DSparkWorkerV2
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.serving.engine.plan.in_force import start_plan
from sparktier.serving.engine.rank_options import rank_options
from sparktier.serving.engine.slots.request_slots import SlotTable
from sparktier.serving.engine.speculation.row_budget import row_counts, rung_tokens, tier_caps

SHORT_TOKENS = 2


class PlannedVerify(DSparkVerifyPlanner):
    """SGLang's verify planner with a ceiling. Source: `speculative/dspark_components/dspark_planner.py`."""

    def bind(self, tiers: Tensor) -> None:
        """Set the table [request slots] of tier ids; no plan is in force yet."""
        self._tiers = tiers
        self._plan: EnginePlan | None = None

    def set_plan(self, plan: EnginePlan) -> None:
        """Put `plan` in force from the next step on."""
        self._plan, self._caps = plan, tier_caps(plan, device=self._tiers.device)
        # With a flat cost table SGLang would skip planning.
        self._is_verify_all = False

    def _budget_from_resolved(self, *, resolved: Any, req_pool_indices_cpu: Tensor) -> int | None:
        """Return the drafted tokens of the next step over all requests: the lower of SGLang's number and the plan's."""
        budget: int | None = super()._budget_from_resolved(resolved=resolved, req_pool_indices_cpu=req_pool_indices_cpu)
        if self._plan is None:
            return budget
        requests = len(req_pool_indices_cpu)
        most = requests * self._drafted()
        if self._plan.rows > 0:
            most = min(most, max(0, self._plan.rows - requests))
        return most if budget is None else min(budget, most)

    def _schedule_verify_lens(
        self, *, req_pool_indices: Tensor, confidence: Tensor | None, **step: Any
    ) -> Tensor | None:
        """Return the rows of each request [batch] int32: SGLang's choice within the caps of the plan."""
        rows = None
        if self._plan is not None and confidence is not None:
            caps = self._caps[self._tiers[req_pool_indices]]
            useful = torch.full_like(caps, self.gamma)
            rows = row_counts(draft_tokens=self._drafted(), row_budget=0, caps=caps, useful=useful)
            places = torch.arange(1, self.gamma + 1, device=confidence.device)
            # Drafts beyond a cap must not take budget from others.
            confidence = confidence.masked_fill(places >= rows.unsqueeze(1), 0.0)
        lens: Tensor | None = super()._schedule_verify_lens(
            req_pool_indices=req_pool_indices, confidence=confidence, **step
        )
        return lens if lens is None or rows is None else torch.minimum(lens, rows.to(lens))

    def _drafted(self) -> int:
        assert self._plan is not None, "called under a plan only"
        return rung_tokens(self._plan.rung, block_tokens=self.gamma, short_tokens=SHORT_TOKENS)


class NativeWorker(DSparkWorkerV2):
    """SGLang's worker; it takes plans if verification is trimmed at run time (`verification: compact`)."""

    highest_rung = Rung.CHAIN

    def __init__(self, **kwargs: Any) -> None:
        with _planned():
            super().__init__(**kwargs)
        draft = parse_dspark_draft_config(draft_hf_config=self.draft_model_runner.model_config.hf_config)
        require_trained_block(self.gamma, draft.resolve_gamma())
        self.plan = start_plan(rank_options(), highest=self.highest_rung)

    @property
    def takes_plans(self) -> bool:
        """Whether verification is trimmed at run time; under SGLang's static mode a plan would change nothing."""
        return bool(self._verify_planner.is_compact_mode)

    def alloc_memory_pool(self, **kwargs: Any) -> None:
        """Allocate the draft's KV pool and the table of request slots."""
        super().alloc_memory_pool(**kwargs)
        slots = self.model_runner.req_to_token_pool.req_to_token.shape[0]
        self.slots = SlotTable(slots, device=torch.device(self.device))
        self._verify_planner.bind(self.slots.tier)
        if any(terms.cap_tokens is not None for terms in self.plan.tiers.values()):
            self.set_plan(self.plan)

    def set_plan(self, plan: EnginePlan) -> None:
        """Put `plan` in force from the next step on; SGLang calls this between steps, on every rank alike."""
        self.plan = plan
        self._verify_planner.set_plan(plan)

    def _forward_prefill(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if not batch.forward_mode.is_idle():
            self.slots.add_requests(batch.reqs, batch.req_pool_indices, plan=self.plan)
        return super()._forward_prefill(batch, *args, **kwargs)


def require_trained_block(block_tokens: int, trained_tokens: int | None) -> None:
    """Raise ArtifactError if the block is longer than the draft was trained for; SGLang only logs it."""
    if trained_tokens is not None and block_tokens > trained_tokens:
        raise ArtifactError(
            f"speculation.block_tokens: must be at most the {trained_tokens} that the draft was trained for "
            f"(found {block_tokens}). Lower it, or leave it out."
        )


@contextmanager
def _planned() -> Iterator[None]:
    stock = dspark_worker_v2.DSparkVerifyPlanner
    dspark_worker_v2.DSparkVerifyPlanner = PlannedVerify
    try:
        yield
    finally:
        dspark_worker_v2.DSparkVerifyPlanner = stock
