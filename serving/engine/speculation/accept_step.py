"""Which verified rows are accepted: the rule of a step, the order in which it reads rows, one outcome for all ranks."""

from typing import Any

import torch
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite

from sparktier.kernels.accept import accept_matching
from sparktier.kernels.accept_tree import TreeAcceptance, walk_drawn, walk_matching
from sparktier.kernels.draft_tree import NO_ROW
from sparktier.serving.engine.speculation.draft_step import Drafted
from sparktier.serving.engine.speculation.row_budget import StepBudget
from sparktier.serving.engine.speculation.target_distribution import TargetDistribution
from sparktier.serving.engine.speculation.verify_pass import Verified


def accept(
    distribution: TargetDistribution,
    batch: Any,
    budget: StepBudget,
    drafted: Drafted,
    verified: Verified,
    *,
    block_tokens: int,
) -> TreeAcceptance:
    """Return what the target accepts of `drafted`, and its own token after that."""
    tree = drafted.tree
    if drafted.draft_probs is not None:
        return walk_drawn(
            tree=tree,
            target_probs=distribution.probs,
            draft_probs=drafted.draft_probs,
            seeds=batch.sampling_info.sampling_seed,
            anchor_positions=batch.seq_lens,
            max_depth=block_tokens,
            max_children=budget.shape.children,
        )
    if budget.draft_tokens == 0:
        return _nothing_drafted(distribution, verified)
    if budget.branching or distribution.by_level:
        return walk_matching(tree=tree, choose=distribution.choose, max_depth=block_tokens)
    return _accept_chain(distribution, drafted, verified)


def _nothing_drafted(distribution: TargetDistribution, verified: Verified) -> TreeAcceptance:
    chosen = distribution.choose(verified.requests, verified.rows)
    rows = chosen.unsqueeze(1)
    return TreeAcceptance(torch.zeros_like(chosen), torch.zeros_like(rows), rows, chosen)


def _accept_chain(distribution: TargetDistribution, drafted: Drafted, verified: Verified) -> TreeAcceptance:
    tree = drafted.tree
    chosen = torch.zeros_like(tree.tokens)
    chosen[verified.requests, verified.rows] = distribution.choose(verified.requests, verified.rows)
    chain = accept_matching(drafts=tree.tokens[:, 1:], target_tokens=chosen, row_counts=tree.row_counts)
    places = torch.arange(tree.tokens.shape[1], device=chosen.device).expand_as(tree.tokens)
    path = places.masked_fill(places > chain.accepted.unsqueeze(1), NO_ROW)
    return TreeAcceptance(chain.accepted, path, chain.tokens, chain.bonus)


def agreed(sync: Any, accepted: TreeAcceptance) -> TreeAcceptance:
    """Rank 0's outcome on every rank: ranks that commit different tokens diverge and hang in the next collective."""
    if not sync.enabled(SpecTpSyncSite.DSPARK_ACCEPT_SAMPLE):
        return accepted
    width = accepted.path.shape[1]
    columns = [accepted.accepted.unsqueeze(1), accepted.bonus.unsqueeze(1), accepted.path, accepted.tokens]
    packed = sync.sync(SpecTpSyncSite.DSPARK_ACCEPT_SAMPLE, torch.cat(columns, dim=1))
    counts, bonus, path, tokens = packed.split([1, 1, width, width], dim=1)
    return TreeAcceptance(counts.squeeze(1), path, tokens, bonus.squeeze(1))
