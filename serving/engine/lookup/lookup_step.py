"""Drafting without a draft model: chains that a lookup finds in each request's own context."""

from typing import Any

from sparktier.kernels.draft_tree import anchors_alone
from sparktier.serving.engine.slots.prompt_lookup import PromptLookup
from sparktier.serving.engine.speculation.draft_step import Drafted, agreed_tree, selected
from sparktier.serving.engine.speculation.row_budget import StepBudget


class LookupStep:
    """In the place of `DraftStep`. sync: SGLang's agreement of ranks, which share out rows by clocks of their own."""

    def __init__(self, lookup: PromptLookup, sync: Any) -> None:
        self._lookup, self._sync = lookup, sync

    def run(self, batch: Any, _window: Any, budget: StepBudget, *, drawn: bool) -> Drafted:
        """Draft within `budget`; nothing can be `drawn`."""
        assert not drawn, "the rules of settings refuse it"
        anchors = batch.spec_info.bonus_tokens.view(-1)
        if budget.draft_tokens == 0:
            return Drafted(anchors_alone(anchors), budget.row_counts)
        candidates = self._lookup.alone(
            anchors, batch.req_pool_indices, batch.seq_lens + 1, tokens=budget.lookup_tokens
        )
        rows = selected(candidates, budget, drawn=False)
        tree, _ = agreed_tree(self._sync, rows.selection.tree)
        return Drafted(tree, rows.verified(tree), expected=rows.expected, survival=rows.survival)


class NoFeatures:
    """In the place of `FeatureInjection`, where no draft reads any features."""

    def flush(self) -> None:
        """Do nothing."""

    def inject(self, batch: Any, window: Any, verified: Any, accepted: Any) -> None:
        """Do nothing."""
