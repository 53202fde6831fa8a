"""From the draft model's block to what the target verifies: a greedy chain, or a tree of conditioned children.

Uses SGLang's DSpark proposer for the block itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from sglang.srt.speculative.dspark_components.dspark_draft import draft_markov_block
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.kernels.accept_tree import RowReader
from sparktier.kernels.draft_tree import DraftTree, anchors_alone, chain_tree
from sparktier.kernels.expand import Candidates, MarkovHead, expand_drawn, expand_top
from sparktier.kernels.select import Selection, select_rows
from sparktier.serving.engine.speculation.edge_acceptance import EdgeTable, slot_acceptance
from sparktier.serving.engine.speculation.row_budget import StepBudget

# Conditioning tens of thousands of tokens on every parent costs as much as a verify pass of the demo model.
# Fewer are conditioned all: a list made before any parent is known misses what a parent alone suggests.
_SHORTLIST_TOKENS = 256
# What isn't listed can't be drawn, though the target may: 256 tokens lose 2 to 10% of the demo's accepted draws, these
# 1 to 5% (docs/log.md).
_DRAWN_SHORTLIST_TOKENS = 1024
_SMALL_VOCABULARY = 16 * _SHORTLIST_TOKENS


class Drafted(NamedTuple):
    """The tree of a step. draft_probs: q of the given rows, where their children were drawn from it.

    expected: drafted tokens of each request that the planner expects to be accepted; None without one.
    """

    tree: DraftTree
    draft_probs: RowReader | None = None
    expected: Sequence[float] | None = None


class DraftStep:
    """Drafting with the model of `worker`, a `DSparkWorkerV2`."""

    def __init__(self, worker: Any, edges: EdgeTable, *, needs_trees: bool) -> None:
        self._worker, self._edges = worker, edges
        self._head = _markov_head(worker.draft_model) if needs_trees else None
        self._lists = self._head is not None and len(self._head.w2) > _SMALL_VOCABULARY

    def run(self, batch: Any, window: Any, budget: StepBudget, *, drawn: bool) -> Drafted:
        """Draft within `budget`. `drawn`: children are drawn, as the ratio rule needs, instead of the likeliest."""
        if budget.draft_tokens == 0:
            return Drafted(anchors_alone(batch.spec_info.bonus_tokens.view(-1)))
        if drawn:
            return self._drawn_tree(batch, window, budget)
        # A paced chain is drafted as a tree of one branch: that alone gives survivals.
        top = budget.branching or budget.pace is not None
        return self._top_tree(batch, window, budget) if top else self._chain(batch, window, budget)

    def _chain(self, batch: Any, window: Any, budget: StepBudget) -> Drafted:
        """Greedy chains, each cut to its request's rows."""
        worker, anchors = self._worker, batch.spec_info.bonus_tokens.view(-1)
        with worker._draft_context():
            base, hidden = self._block(batch, window)
            # Of no more columns than are drafted: each is fed to the draft's context, accepted or not.
            drafts, _ = draft_markov_block(
                markov_head=worker.draft_model.markov_head,
                base_logits=base[:, : budget.draft_tokens],
                anchor_tokens=anchors,
                draft_hidden=hidden[:, : budget.draft_tokens],
                step_temperatures=torch.zeros(len(anchors), device=anchors.device),
                noise=worker._proposer.noise,
                tp_sync=worker._tp_sync,
                greedy_draft=True,
            )
        return Drafted(chain_tree(anchors=anchors, drafts=drafts, row_counts=budget.row_counts))

    def _top_tree(self, batch: Any, window: Any, budget: StepBudget) -> Drafted:
        """The likeliest rows of a tree."""
        info = batch.sampling_info
        temperatures = info.temperatures.view(-1)
        assert self._head is not None, "made with needs_trees"
        with self._worker._draft_context():
            base, _ = self._block(batch, window)
        candidates = expand_top(
            anchors=batch.spec_info.bonus_tokens.view(-1),
            block_logits=base,
            head=self._head,
            temperatures=temperatures,
            shape=budget.shape,
            edge_acceptance=self._edges.of(temperatures, greedy=info.top_ks.view(-1) <= 1),
            shortlist=_SHORTLIST_TOKENS if self._lists else None,
        )
        selection, expected = _selected(candidates, budget, drawn=False)
        return Drafted(self._agreed(selection)[0], expected=expected)

    def _drawn_tree(self, batch: Any, window: Any, budget: StepBudget) -> Drafted:
        """A tree (a chain with one parent and child per level) whose children are drawn, for ratio acceptance."""
        info = batch.sampling_info
        assert self._head is not None, "made with needs_trees"
        with self._worker._draft_context():
            base, _ = self._block(batch, window)
        candidates, draft_distributions = expand_drawn(
            anchors=batch.spec_info.bonus_tokens.view(-1),
            block_logits=base,
            head=self._head,
            temperatures=info.temperatures.view(-1),
            shape=budget.shape,
            slot_acceptance=lambda q, _depth: slot_acceptance(q, budget.shape.children),
            seeds=info.sampling_seed,
            anchor_positions=batch.seq_lens,
            shortlist=_DRAWN_SHORTLIST_TOKENS if self._lists else None,
        )
        # The probabilities stay each rank's own: only rank 0's verdict counts.
        selection, expected = _selected(candidates, budget, drawn=True)
        tree, distributions = self._agreed(selection)
        # Rows without children have no distribution of their own; theirs is not read.
        return Drafted(
            tree,
            lambda requests, rows: draft_distributions.dense(requests, distributions[requests, rows].clamp(min=0)),
            expected,
        )

    def _block(self, batch: Any, window: Any) -> tuple[Tensor, Tensor]:
        """Logits [batch, gamma, V] before the Markov head, and the draft's hidden states [batch, gamma, hidden]."""
        worker, size = self._worker, len(batch.seq_lens)
        forward = worker._proposer._run_forward(
            batch=batch,
            draft_input=batch.spec_info,
            verify_window=window,
            bs=size,
            device=worker.device,
            embed_module=worker._resolve_target_embed_tokens(worker.target_worker.model_runner.model),
        )
        with worker._proposer._base_logits_context():
            base, _ = worker.draft_model.compute_base_logits(forward.raw_hidden)
        return base.view(size, worker.gamma, -1), forward.draft_hidden_3d

    def _agreed(self, selection: Selection) -> tuple[DraftTree, Tensor]:
        """Rank 0's tree and distributions on every rank: rounding differs, but all ranks must verify the same rows."""
        sync, tree = self._worker._tp_sync, selection.tree
        if not sync.enabled(SpecTpSyncSite.DSPARK_DRAFT):
            return tree, selection.distributions
        counts = tree.row_counts.unsqueeze(1)
        packed = torch.cat([tree.tokens, tree.parents, tree.depths, selection.distributions, counts], dim=1)
        packed = sync.sync(SpecTpSyncSite.DSPARK_DRAFT, packed.contiguous())
        width = tree.tokens.shape[1]
        tokens, parents, depths, distributions, counts = packed.split([width] * 4 + [1], dim=1)
        return DraftTree(tokens, parents, depths, counts.squeeze(1)), distributions


def _selected(candidates: Candidates, budget: StepBudget, *, drawn: bool) -> tuple[Selection, Sequence[float] | None]:
    """The rows to verify: the likeliest of each request within its budget, none deeper than it may still emit.

    With them how many drafted tokens of each request are expected to be accepted, where the step is paced.
    """
    beyond = candidates.depths > budget.useful.clamp(min=0).unsqueeze(1)
    reachable = candidates._replace(survival=candidates.survival.masked_fill(beyond, 0.0))
    if budget.pace is None:
        return select_rows(candidates=reachable, row_budgets=budget.row_counts, width=budget.width), None
    rows = budget.pace.row_counts(reachable.survival, drawn=drawn)
    return select_rows(candidates=reachable, row_budgets=rows.row_counts, width=budget.width), rows.expected


def _markov_head(draft_model: Any) -> MarkovHead:
    head = draft_model.markov_head
    kind = type(head).__name__
    if kind != "VanillaMarkov":
        raise ArtifactError(
            f"speculation: trees and the ratio rule need a draft with a vanilla Markov head (found {kind}). "
            "Use method `chain` with `accept_rule: match`, or another draft."
        )
    return MarkovHead(head.markov_w1.weight.data, head.markov_w2.weight.data)
