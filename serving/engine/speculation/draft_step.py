"""From the draft model's block to what the target verifies: a greedy chain, or a tree of conditioned children.

Uses SGLang's DSpark proposer for the block itself; a lookup in the request's own context may draft beside it. On a GPU
the rest is in the draft's CUDA graph too (draft_tail.py).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from sglang.srt.speculative.dspark_components.dspark_draft import draft_markov_block
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.kernels.accept_tree import RowReader
from sparktier.kernels.captured import StagedInputs
from sparktier.kernels.draft_tree import DraftTree, anchors_alone, chain_tree
from sparktier.kernels.expand import Candidates, MarkovHead, Shape, expand_drawn, expand_top
from sparktier.kernels.mask import ancestor_words
from sparktier.kernels.select import Selection, highest, reachable, select_rows
from sparktier.serving.engine.rank_options import TreeBounds
from sparktier.serving.engine.slots.prompt_lookup import PromptLookup
from sparktier.serving.engine.speculation.draft_tail import CHAIN_TAIL, TREE_TAIL, DraftTail, Proposed
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

    row_counts [batch] int64, on the host: rows of each request in the verify pass. expected: drafted tokens of each
    request that the planner expects to be accepted, None without one; or survival [batch, nodes], falling, from which
    the planner tells once it is on the host. words: `ancestor_words` of the tree where they are known already.
    """

    tree: DraftTree
    row_counts: Tensor
    draft_probs: RowReader | None = None
    expected: Sequence[float] | None = None
    survival: Tensor | None = None
    words: Tensor | None = None


class DraftStep:
    """Drafting with the model of `worker`, a `DSparkWorkerV2`, and from the contexts of `lookup` where there is one."""

    def __init__(self, worker: Any, edges: EdgeTable, *, needs_trees: bool, lookup: PromptLookup | None = None) -> None:
        self._worker, self._edges, self._lookup = worker, edges, lookup
        self._tail: DraftTail | None = None
        self._head = _markov_head(worker.draft_model) if needs_trees else None
        self._lists = self._head is not None and len(self._head.w2) > _SMALL_VOCABULARY

    def capture_tail(self, *, most_requests: int, tree: TreeBounds | None, paced: bool) -> DraftTail:
        """Return what draft graphs of up to `most_requests` end with, by kind; steps read it from now on.

        tree: bounds of the highest rung's trees, None without any. paced: whether chains need survivals.
        """
        worker = self._worker
        block = worker.gamma
        top = paced or self._lookup is not None
        of_one = partial(self._propose_top, shape=Shape(block, 1, 1), width=block + 1, branching=False)
        proposers = {CHAIN_TAIL: of_one if top else self._propose_chain}
        if tree is not None:
            shape = Shape(min(tree.rows - 1, block), tree.parents, tree.children)
            proposers[TREE_TAIL] = partial(self._propose_top, shape=shape, width=tree.rows, branching=True)
        self._tail = DraftTail(
            proposers,
            most_requests=most_requests,
            query_rows=worker.query_token_num,
            device=torch.device(worker.device),
        )
        return self._tail

    def run(self, batch: Any, window: Any, budget: StepBudget, *, drawn: bool) -> Drafted:
        """Draft within `budget`. `drawn`: children are drawn, as the ratio rule needs, instead of the likeliest."""
        if budget.draft_tokens == 0:
            return Drafted(anchors_alone(batch.spec_info.bonus_tokens.view(-1)), budget.row_counts)
        if drawn:
            return self._drawn_tree(batch, budget, *self._block(batch, window))
        if self._tail is None:
            block = self._block(batch, window)
        else:
            self._tail.stage(budget, self._worker._draft_block_spec_info)
            if self._lookup is not None:
                self._tail.stage_requests(batch.req_pool_indices, batch.seq_lens, no_slot=self._lookup.no_slot)
            with self._worker._draft_context():
                forward = self._forward(batch, window, draft_sampler=self._tail, sampling_info=batch.sampling_info)
                if not forward.can_run_graph:
                    block = self._after_layers(forward.raw_hidden, len(batch.seq_lens))
            if forward.can_run_graph:
                return self._captured(self._tail.proposed(budget), budget)
        # A paced chain, or the better one of two, is drafted as a tree of one branch: that alone gives survivals.
        top = budget.branching or budget.pace is not None or self._lookup is not None
        return (self._top_tree if top else self._chain)(batch, budget, *block)

    def _chain(self, batch: Any, budget: StepBudget, base: Tensor, hidden: Tensor) -> Drafted:
        """Greedy chains, each cut to its request's rows."""
        anchors = batch.spec_info.bonus_tokens.view(-1)
        # Of no more columns than are drafted: each is fed to the draft's context, accepted or not.
        columns = slice(budget.draft_tokens)
        with self._worker._draft_context():
            drafts = self._greedy_chain(anchors, base[:, columns], hidden[:, columns])
        counts = budget.to(anchors.device).row_counts
        return Drafted(chain_tree(anchors=anchors, drafts=drafts, row_counts=counts), budget.row_counts)

    def _top_tree(self, batch: Any, budget: StepBudget, base: Tensor, _hidden: Tensor) -> Drafted:
        """The likeliest rows of a tree."""
        info = batch.sampling_info
        candidates = self._top_candidates(
            anchors=batch.spec_info.bonus_tokens.view(-1),
            base=base,
            temperatures=info.temperatures.view(-1),
            greedy=info.top_ks.view(-1) <= 1,
            shape=budget.shape,
        )
        if self._lookup is not None:
            candidates = self._lookup.join(
                candidates,
                batch.req_pool_indices,
                batch.seq_lens + 1,
                tokens=budget.lookup_tokens,
                most_rows=None if budget.branching else budget.to(batch.seq_lens.device).row_counts,
            )
        found = selected(candidates, budget, drawn=False)
        tree, _ = self._agreed(found.selection)
        return Drafted(tree, found.verified(tree), expected=found.expected, survival=found.survival)

    def _drawn_tree(self, batch: Any, budget: StepBudget, base: Tensor, _hidden: Tensor) -> Drafted:
        """A tree (a chain with one parent and child per level) whose children are drawn, for ratio acceptance."""
        info = batch.sampling_info
        assert self._head is not None, "made with needs_trees"
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
        found = selected(candidates, budget, drawn=True)
        tree, distributions = self._agreed(found.selection)
        # Rows without children have no distribution of their own; theirs is not read.
        return Drafted(
            tree,
            found.verified(tree),
            lambda requests, rows: draft_distributions.dense(requests, distributions[requests, rows].clamp(min=0)),
            found.expected,
            found.survival,
        )

    def _captured(self, proposed: Proposed, budget: StepBudget) -> Drafted:
        """What the draft's graph has proposed, as eager steps have it."""
        tree = proposed.tree
        # A copy: the next replay may come before the planner has been told.
        survival = None if budget.pace is None else proposed.survival.clone()
        if budget.branching:
            tree, (words,) = self._agreed_tree(tree, proposed.words.flatten(1))
            return Drafted(tree, budget.most_rows, survival=survival, words=words.view_as(proposed.words).int())
        if budget.pace is not None or self._lookup is not None:
            tree, _ = self._agreed_tree(tree)
        # Other chains are agreed on token by token.
        return Drafted(tree, budget.most_rows, survival=survival)

    def _propose_chain(self, hidden: Tensor, anchors: Tensor, staged: StagedInputs) -> Proposed:
        """`_chain` of the whole block, inside the draft's graph."""
        base, hidden = self._after_layers(self._of_block(hidden, len(anchors)), len(anchors))
        drafts = self._greedy_chain(anchors, base, hidden)
        tree = chain_tree(anchors=anchors, drafts=drafts, row_counts=staged.limits[:, 0])
        nothing = base.new_empty(len(anchors), tree.tokens.shape[1], 0)
        return Proposed(tree, nothing, nothing[:, 0])

    def _propose_top(
        self, hidden: Tensor, anchors: Tensor, staged: StagedInputs, *, shape: Shape, width: int, branching: bool
    ) -> Proposed:
        """`_top_tree` inside the draft's graph: its rows are known to be within the staged limits."""
        base, _ = self._after_layers(self._of_block(hidden, len(anchors)), len(anchors))
        found = self._top_candidates(
            anchors=anchors, base=base, temperatures=staged.temperatures, greedy=staged.greedy, shape=shape
        )
        if self._lookup is not None:
            most_rows = None if branching else staged.limits[:, 0]
            found = self._lookup.join(found, staged.slots, staged.lengths, tokens=width - 1, most_rows=most_rows)
        candidates = reachable(candidates=found, useful=staged.limits[:, 1])
        tree = select_rows(candidates=candidates, row_budgets=staged.limits[:, 0], width=width).tree
        survival = highest(survival=candidates.survival, nodes=width - 1)
        return Proposed(tree, ancestor_words(tree=tree), survival)

    def _top_candidates(
        self, *, anchors: Tensor, base: Tensor, temperatures: Tensor, greedy: Tensor, shape: Shape
    ) -> Candidates:
        assert self._head is not None, "made with needs_trees"
        return expand_top(
            anchors=anchors,
            block_logits=base,
            head=self._head,
            temperatures=temperatures,
            shape=shape,
            edge_acceptance=self._edges.of(temperatures, greedy=greedy),
            shortlist=_SHORTLIST_TOKENS if self._lists else None,
        )

    def _greedy_chain(self, anchors: Tensor, base: Tensor, hidden: Tensor) -> Tensor:
        worker = self._worker
        drafts: Tensor = draft_markov_block(
            markov_head=worker.draft_model.markov_head,
            base_logits=base,
            anchor_tokens=anchors,
            draft_hidden=hidden,
            step_temperatures=torch.zeros(len(anchors), device=anchors.device),
            noise=worker._proposer.noise,
            tp_sync=worker._tp_sync,
            greedy_draft=True,
        )[0]
        return drafts

    def _block(self, batch: Any, window: Any) -> tuple[Tensor, Tensor]:
        """Logits [batch, gamma, V] before the Markov head, and the draft's hidden states [batch, gamma, hidden]."""
        with self._worker._draft_context():
            return self._after_layers(self._forward(batch, window).raw_hidden, len(batch.seq_lens))

    def _of_block(self, hidden: Tensor, size: int) -> Tensor:
        """Rows of `hidden` that predict drafted tokens; some drafts have the anchor's in front of them."""
        return hidden.view(size, -1, hidden.shape[-1])[:, -self._worker.gamma :].flatten(0, 1)

    def _after_layers(self, hidden: Tensor, size: int) -> tuple[Tensor, Tensor]:
        worker = self._worker
        with worker._proposer._base_logits_context():
            base, _ = worker.draft_model.compute_base_logits(hidden)
        return base.view(size, worker.gamma, -1), hidden.view(size, worker.gamma, -1)

    def _forward(self, batch: Any, window: Any, **graph: Any) -> Any:
        worker = self._worker
        return worker._proposer._run_forward(
            batch=batch,
            draft_input=batch.spec_info,
            verify_window=window,
            bs=len(batch.seq_lens),
            device=worker.device,
            embed_module=worker._resolve_target_embed_tokens(worker.target_worker.model_runner.model),
            **graph,
        )

    def _agreed(self, selection: Selection) -> tuple[DraftTree, Tensor]:
        """Rank 0's tree and distributions on every rank: rounding differs, but all ranks must verify the same rows."""
        tree, (distributions,) = self._agreed_tree(selection.tree, selection.distributions)
        return tree, distributions

    def _agreed_tree(self, tree: DraftTree, *beside: Tensor) -> tuple[DraftTree, Sequence[Tensor]]:
        return agreed_tree(self._worker._tp_sync, tree, *beside)


def agreed_tree(sync: Any, tree: DraftTree, *beside: Tensor) -> tuple[DraftTree, Sequence[Tensor]]:
    """Return rank 0's tree on every rank, by SGLang's `sync`; `beside` [batch, n] int64 each goes with it."""
    if not sync.enabled(SpecTpSyncSite.DSPARK_DRAFT):
        return tree, beside
    columns = (tree.row_counts.unsqueeze(1), *tree[:3], *beside)
    packed = sync.sync(SpecTpSyncSite.DSPARK_DRAFT, torch.cat(columns, dim=1).contiguous())
    counts, tokens, parents, depths, *others = packed.split([column.shape[1] for column in columns], dim=1)
    return DraftTree(tokens, parents, depths, counts.squeeze(1)), others


class Selected(NamedTuple):
    """The rows to verify; most_rows [batch]: a bound on them that the host knows. The rest as in `Drafted`."""

    selection: Selection
    most_rows: Tensor
    expected: Sequence[float] | None = None
    survival: Tensor | None = None

    def verified(self, tree: DraftTree) -> Tensor:
        """[batch] int64 on the host: rows of the pass. A GPU isn't asked; rows that hold nothing are padding there."""
        return tree.row_counts if tree.row_counts.device.type == "cpu" else self.most_rows


def selected(candidates: Candidates, budget: StepBudget, *, drawn: bool) -> Selected:
    """The likeliest rows of each request within its budget, none deeper than it may still emit."""
    device = candidates.tokens.device
    there = budget.to(device)
    within = reachable(candidates=candidates, useful=there.useful)
    pace = budget.pace
    if pace is None or pace.is_decided:
        selection = select_rows(candidates=within, row_budgets=there.row_counts, width=budget.width)
        survival = None if pace is None else highest(survival=within.survival, nodes=pace.nodes)
        return Selected(selection, budget.most_rows, survival=survival)
    paced = pace.row_counts(within.survival, drawn=drawn)
    shared = budget._replace(row_counts=paced.row_counts)
    selection = select_rows(candidates=within, row_budgets=shared.to(device).row_counts, width=budget.width)
    return Selected(selection, shared.most_rows, paced.expected)


def _markov_head(draft_model: Any) -> MarkovHead:
    head = draft_model.markov_head
    kind = type(head).__name__
    if kind != "VanillaMarkov":
        raise ArtifactError(
            f"speculation: trees and the ratio rule need a draft with a vanilla Markov head (found {kind}). "
            "Use method `chain` with `accept_rule: match`, or another draft."
        )
    return MarkovHead(head.markov_w1.weight.data, head.markov_w2.weight.data)
