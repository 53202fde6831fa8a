"""One decode step: budget, draft, verify, accept, compact, inject, result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparktier.configs.plan_keys import EnginePlan
from sparktier.kernels.accept_tree import TreeAcceptance
from sparktier.kernels.verify.commit import Commit
from sparktier.serving.engine.graphs.verify_graphs import VerifyGraphs
from sparktier.serving.engine.plan.agreement import of_first_rank
from sparktier.serving.engine.plan.group_step import Wish
from sparktier.serving.engine.plan.step_inputs import StepInputs
from sparktier.serving.engine.rank_options import LadderOptions
from sparktier.serving.engine.slots.penalty_table import PenaltyTable
from sparktier.serving.engine.slots.prompt_lookup import PromptLookup
from sparktier.serving.engine.speculation import verify_pass
from sparktier.serving.engine.speculation.accept_step import accept, agreed
from sparktier.serving.engine.speculation.deferred_injection import FeatureInjection
from sparktier.serving.engine.speculation.draft_step import Drafted, DraftStep
from sparktier.serving.engine.speculation.pacing import Pacer
from sparktier.serving.engine.speculation.row_budget import StepBudget, step_budget
from sparktier.serving.engine.speculation.step_result import CountedResult, StepRecord, commit, step_result
from sparktier.serving.engine.speculation.target_distribution import TargetDistribution, grammar_mask, grammar_tree
from sparktier.serving.engine.speculation.verify_pass import Verified
from sparktier.serving.engine.telemetry.step_phases import Phases


@dataclass(frozen=True)
class DecodeStep:
    """The step of one rank, and what stays the same from step to step.

    executor, sync, group, model_runner: SGLang's verify pass, agreement of ranks, the ranks themselves, and target.
    block_tokens: what the draft drafts at once. window_rows: most rows that one request may verify. graphs: of verify
    passes, beside SGLang's; None without any. lookup: contexts of the requests, None where nothing is drafted from
    them.
    """

    options: LadderOptions
    block_tokens: int
    window_rows: int
    drafter: DraftStep
    features: FeatureInjection
    penalties: PenaltyTable
    pacer: Pacer | None
    executor: Any
    sync: Any
    group: Any
    model_runner: Any
    graphs: VerifyGraphs | None = None
    lookup: PromptLookup | None = None

    def run(self, inputs: StepInputs) -> CountedResult:
        """Draft, verify and commit tokens for every request of the batch."""
        batch, window, group = inputs.batch, inputs.window, inputs.group_step
        phases = Phases(inputs.room.device)
        with phases.of("draft"):
            budget = self._budget(inputs)
            drafted = self._draft(batch, window, budget)
        tree = drafted.tree
        grammar = grammar_tree(batch, tree, branching=budget.branching)
        with phases.of("verify"):
            verified = verify_pass.run(
                executor=self.executor,
                batch=batch,
                window=window,
                tree=tree,
                row_counts=drafted.row_counts.tolist(),
                branching=budget.branching,
                words=drafted.words,
                graphs=self.graphs,
                group_step=group,
            )
        accepted = self._accept(inputs, budget, drafted, verified, grammar)
        committed = commit(inputs, tree, verified, accepted)
        if self.lookup is not None:
            self.lookup.add_tokens(batch.req_pool_indices, batch.seq_lens + 1, accepted.tokens)
        if budget.branching:
            self._compact(committed)
        with phases.of("inject"):
            self.features.inject(batch, window, verified, committed)
        record = StepRecord(
            phases,
            int(inputs.rung),
            inputs.tiers,
            drafted.row_counts,
            committed.depths,
            expected=drafted.expected,
            drawn=drafted.draft_probs is not None,
            pace=budget.pace,
            survival=drafted.survival,
            padding_rows=(len(verified.logits) if group is None else group.rows) - int(drafted.row_counts.sum()),
        )
        return step_result(
            inputs, verified, accepted, committed, record, penalties=self.penalties, window_rows=self.window_rows
        )

    def wish(self, requests: Sequence[Any], plan: EnginePlan, *, caps: Tensor, room: Tensor) -> Wish:
        """Return what a step of SGLang's `requests` would run alone; `caps` and `room` as in `StepInputs`."""
        bounds = self._bounds(plan)
        budget = step_budget(bounds, self.options, block_tokens=self.block_tokens, caps=caps, room=room)
        if self.pacer is None or budget.draft_tokens == 0:
            rows = int(budget.most_rows.sum())
        else:
            most, nodes = budget.row_counts, budget.draft_tokens
            rows = self.pacer.planned(requests, plan, most_rows=most, nodes=nodes).total
        return Wish(int(plan.rung), max(rows, len(requests)))

    def _bounds(self, plan: EnginePlan) -> EnginePlan:
        # The planner shares out the row budget itself.
        return plan if self.pacer is None else replace(plan, rows=0)

    def _budget(self, inputs: StepInputs) -> StepBudget:
        plan, group = inputs.plan, inputs.group_step
        if group is not None:
            # Rows that another group's load pays for are free: all that are there may be used.
            plan = replace(plan, rung=group.rung, rows=group.rows)
        bounds = self._bounds(plan)
        budget = step_budget(bounds, self.options, block_tokens=self.block_tokens, caps=inputs.caps, room=inputs.room)
        if self.pacer is None or budget.draft_tokens == 0:
            return budget
        pace = self.pacer.begin(
            inputs.batch.reqs,
            plan,
            most_rows=budget.row_counts,
            nodes=budget.draft_tokens,
            total=None if group is None else group.rows,
        )
        if self.pacer.live or inputs.batch.seq_lens.device.type == "cpu":
            return budget._replace(pace=pace)
        # Nothing waits for a GPU here, so drafts of earlier steps decide.
        rows = of_first_rank(self.group, torch.from_numpy(pace.step.rows))
        return budget._replace(row_counts=rows, pace=replace(pace, is_decided=True))

    def _draft(self, batch: Any, window: Any, budget: StepBudget) -> Drafted:
        if budget.draft_tokens > 0:
            self.features.flush()
        # A greedy batch is served as well by the likeliest drafts, which cost less than draws.
        drawn = self.options.accept_rule == "ratio" and not batch.sampling_info.is_all_greedy
        return self.drafter.run(batch, window, budget, drawn=drawn)

    def _accept(
        self, inputs: StepInputs, budget: StepBudget, drafted: Drafted, verified: Verified, grammar: Any
    ) -> TreeAcceptance:
        batch = inputs.batch
        distribution = TargetDistribution(
            verified,
            batch=batch,
            tree=drafted.tree,
            prompt_lens=inputs.prompt_lens,
            penalties=self.penalties,
            grammar=grammar_mask(batch, grammar, inputs.grammar_barrier, device=verified.logits.device),
        )
        accepted = accept(
            distribution, batch, budget, drafted, verified, most_tokens=max(self.block_tokens, budget.depth)
        )
        return agreed(self.sync, accepted)

    def _compact(self, committed: Commit) -> None:
        """Move the KV of accepted rows to the front of each request's window; the draft's KV is injected there."""
        self.model_runner.token_to_kv_pool.move_kv_cache(committed.destination.flatten(), committed.source.flatten())
