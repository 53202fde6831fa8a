"""SGLang's verify planner under our plan: a ceiling by rung, row budget and tier, and rows by our planner if it paces.

Source: `sglang/srt/speculative/dspark_components/dspark_planner.py`. SGLang drafts before it plans, so the block is
drafted on every rung, `off` included.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sglang.srt.speculative.dspark_components import dspark_worker_v2
from sglang.srt.speculative.dspark_components.dspark_planner import DSparkVerifyPlanner, HostConfidenceBudgetPlanner
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite
from torch import Tensor

from sparktier.configs.plan_keys import EnginePlan
from sparktier.serving.engine.plan.agreement import of_first_rank
from sparktier.serving.engine.plan.request_tier import admitted
from sparktier.serving.engine.speculation.pacing import Pace, Pacer
from sparktier.serving.engine.speculation.row_budget import row_counts, rung_tokens, tier_caps

SHORT_TOKENS = 2


class PlannedVerify(DSparkVerifyPlanner):
    """Rows of each request within the plan: SGLang's choice, or with a pacer that of our planner.

    `requests` are SGLang's of the step that is being planned; the worker sets them.
    """

    _budget_planner: Any

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.requests: Sequence[Any] = ()
        self.expected: Sequence[float] | None = None
        self._pacer: Pacer | None = None
        self._pace: Pace | None = None
        self._plan: EnginePlan | None = None

    def bind(self, tiers: Tensor, *, pacer: Pacer | None, group: Any = None) -> None:
        """Set the table [request slots] of tier ids, the pacer if rows are paced, and SGLang's group of ranks.

        No plan is in force yet.
        """
        self._tiers, self._pacer, self._group = tiers, pacer, group
        if pacer is not None and self._budget_planner is not None:
            self._budget_planner = _LaggedConfidence.like(self._budget_planner)

    def set_plan(self, plan: EnginePlan) -> None:
        """Put `plan` in force from the next step on."""
        self._plan, self._caps = plan, tier_caps(plan, device=self._tiers.device)
        # With a flat cost table SGLang would skip planning.
        self._is_verify_all = False

    def prepare_verify_budget(self, batch: Any, future_map: Any) -> None:
        """Decide the next step's drafted tokens before it is launched, as SGLang does where steps overlap."""
        self.requests = batch.reqs
        super().prepare_verify_budget(batch, future_map)

    def _budget_from_resolved(self, *, resolved: Any, req_pool_indices_cpu: Tensor) -> int | None:
        """Return the drafted tokens of the next step over all requests: the lower of SGLang's number and the plan's.

        A pacer's number takes the place of SGLang's, which knows no tiers.
        """
        self._pace, self.expected = None, None
        budget: int | None = super()._budget_from_resolved(resolved=resolved, req_pool_indices_cpu=req_pool_indices_cpu)
        if self._plan is None:
            return budget
        if self._pacer is not None and self._drafted() > 0:
            return self._paced_budget(self._pacer, self._plan, has_drafts=resolved is not None)
        requests = len(req_pool_indices_cpu)
        most = requests * self._drafted()
        if self._plan.rows > 0:
            most = min(most, max(0, self._plan.rows - requests))
        return most if budget is None else min(budget, most)

    def _paced_budget(self, pacer: Pacer, plan: EnginePlan, *, has_drafts: bool) -> int:
        requests = self.requests
        if has_drafts and not pacer.live:
            assert isinstance(self._budget_planner, _LaggedConfidence), "bind makes it one"
            survival, fresh = self._budget_planner.survival, self._budget_planner.fresh
            with_drafts = [request for request, is_fresh in zip(requests, fresh, strict=True) if is_fresh]
            pacer.drafted(with_drafts, plan, survival[fresh])
        # On the host, where the total is decided.
        caps = tier_caps(plan, device=torch.device("cpu"))[[admitted(request, plan).tier for request in requests]]
        useful = torch.full_like(caps, self.gamma)
        most_rows = row_counts(draft_tokens=self._drafted(), row_budget=0, caps=caps, useful=useful)
        self._pace = pacer.begin(requests, plan, most_rows=most_rows, nodes=self.gamma)
        # Clocks of ranks differ, and with them the weights; the size of the pass must not.
        return int(of_first_rank(self._group, torch.tensor([self._pace.step.total - len(requests)])).item())

    def _schedule_verify_lens(
        self, *, req_pool_indices: Tensor, confidence: Tensor | None, **step: Any
    ) -> Tensor | None:
        """Return the rows of each request [batch] int32, within the caps of the plan."""
        if self._pace is not None and confidence is not None:
            return self._paced_lens(self._pace, confidence)
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

    def _paced_lens(self, pace: Pace, confidence: Tensor) -> Tensor:
        pacer, offers = pace.pacer, pace.step.offers
        survival, rows = offers.survival, pace.step.rows
        if pacer.live:
            survival = confidence.double().cumprod(dim=1).cpu().numpy()
            rows = pacer.share(pace, survival, drawn=False)
        verified = np.arange(self.gamma) < (rows - 1)[:, None]
        self.expected = np.where(verified, survival, 0.0).sum(axis=1).tolist()
        lens = torch.from_numpy(rows).to(device=confidence.device, dtype=torch.int32)
        agreed: Tensor = self._tp_sync.sync(SpecTpSyncSite.DSPARK_PLAN, lens)
        return agreed

    def _drafted(self) -> int:
        assert self._plan is not None, "called under a plan only"
        return rung_tokens(self._plan.rung, block_tokens=self.gamma, short_tokens=SHORT_TOKENS)


class _LaggedConfidence(HostConfidenceBudgetPlanner):
    """SGLang's budget, and the survivals it was made from: of drafts so many steps old as SGLang has it.

    survival: [requests, gamma] numpy; 1 where `fresh` [requests] is false, whose slot another request had.
    """

    survival: Any = None
    fresh: Any = None

    @classmethod
    def like(cls, stock: HostConfidenceBudgetPlanner) -> "_LaggedConfidence":
        """Return one made as `stock` was."""
        return cls(
            sps_table=stock.sps_table,
            cfg=stock.cfg,
            model_runner=stock._model_runner,
            relay_lag_steps=stock.lag_steps - stock.carry_steps,
        )

    def _two_steps_prior_survival(
        self, *, lagged_confidence: Tensor, lagged_generation: Tensor, current_generation: Tensor
    ) -> Tensor:
        survival: Tensor = super()._two_steps_prior_survival(
            lagged_confidence=lagged_confidence,
            lagged_generation=lagged_generation,
            current_generation=current_generation,
        )
        current = current_generation.long()
        self.fresh = ((current >= 1) & (lagged_generation.long() == current)).numpy()
        self.survival = survival.double().numpy()
        return survival


@contextmanager
def planned() -> Iterator[None]:
    """Let SGLang's worker, made in the body, have our planner."""
    stock = dspark_worker_v2.DSparkVerifyPlanner
    dspark_worker_v2.DSparkVerifyPlanner = PlannedVerify
    try:
        yield
    finally:
        dspark_worker_v2.DSparkVerifyPlanner = stock
