"""Which verified rows are accepted: the rule of a step, how it reads the target's rows, one outcome for all ranks."""

from enum import Enum, auto
from typing import Any

import torch
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite
from torch import Tensor

from sparktier.kernels.accept import accept_matching
from sparktier.kernels.accept_tree import TreeAcceptance, walk_drawn, walk_matching
from sparktier.kernels.draft_tree import NO_ROW, DraftTree
from sparktier.serving.engine.speculation.draft_step import Drafted
from sparktier.serving.engine.speculation.row_budget import StepBudget
from sparktier.serving.engine.speculation.target_distribution import TargetDistribution
from sparktier.serving.engine.speculation.verify_pass import Verified


class MatchWalk(Enum):
    """How the match rule walks a tree. All accept the same, as the target's choice in a row is keyed by position.

    BY_LEVEL: choose in the rows that the walk has reached, level by level. CHAIN: choose in all rows, then compare
    them as a chain. KERNEL: choose in all rows, then walk in one launch.
    """

    BY_LEVEL = auto()
    CHAIN = auto()
    KERNEL = auto()


def match_walk(*, on_gpu: bool, branching: bool, penalised: bool, sampled: bool, sorted_rows: bool) -> MatchWalk:
    """Return the cheapest walk.

    Args:
        on_gpu: where launches cost more than rows; on a CPU each row that is read costs.
        branching: whether the tree may have more than one branch.
        penalised: whether what the target says in a row depends on the rows read before it.
        sampled: whether any request draws its tokens.
        sorted_rows: whether rows are sorted to draw from them, which costs more than the launches of a level.
    """
    if penalised:
        return MatchWalk.BY_LEVEL
    if on_gpu:
        return MatchWalk.BY_LEVEL if branching and sorted_rows else MatchWalk.KERNEL
    return MatchWalk.BY_LEVEL if branching or sampled else MatchWalk.CHAIN


def accept(
    distribution: TargetDistribution,
    batch: Any,
    budget: StepBudget,
    drafted: Drafted,
    verified: Verified,
    *,
    most_tokens: int,
) -> TreeAcceptance:
    """Return what the target accepts of `drafted`, at most `most_tokens` of each, and its own token after that."""
    tree = drafted.tree
    if drafted.draft_probs is not None:
        return walk_drawn(
            tree=tree,
            target_probs=distribution.probs,
            draft_probs=drafted.draft_probs,
            seeds=batch.sampling_info.sampling_seed,
            anchor_positions=batch.seq_lens,
            max_depth=most_tokens,
            max_children=budget.shape.children,
        )
    if budget.draft_tokens == 0:
        on_gpu = tree.tokens.is_cuda
        return _walk_kernel(tree, distribution, verified, 0) if on_gpu else _nothing_drafted(distribution, verified)
    walk = match_walk(
        on_gpu=tree.tokens.is_cuda,
        branching=budget.branching,
        penalised=distribution.is_penalised,
        sampled=distribution.is_sampled,
        sorted_rows=distribution.sorts_rows,
    )
    if walk is MatchWalk.BY_LEVEL:
        return walk_matching(tree=tree, choose=distribution.choose, max_depth=most_tokens)
    if walk is MatchWalk.KERNEL:
        return _walk_kernel(tree, distribution, verified, most_tokens)
    chosen = torch.zeros_like(tree.tokens)
    chosen[verified.requests, verified.rows] = distribution.choose(verified.requests, verified.rows)
    return _accept_chain(tree, chosen)


def _nothing_drafted(distribution: TargetDistribution, verified: Verified) -> TreeAcceptance:
    chosen = distribution.choose(verified.requests, verified.rows)
    rows = chosen.unsqueeze(1)
    return TreeAcceptance(torch.zeros_like(chosen), torch.zeros_like(rows), rows, chosen)


def _accept_chain(tree: DraftTree, chosen: Tensor) -> TreeAcceptance:
    chain = accept_matching(drafts=tree.tokens[:, 1:], target_tokens=chosen, row_counts=tree.row_counts)
    places = torch.arange(tree.tokens.shape[1], device=chosen.device).expand_as(tree.tokens)
    path = places.masked_fill(places > chain.accepted.unsqueeze(1), NO_ROW)
    return TreeAcceptance(chain.accepted, path, chain.tokens, chain.bonus)


def _walk_kernel(
    tree: DraftTree, distribution: TargetDistribution, verified: Verified, most_tokens: int
) -> TreeAcceptance:
    from sparktier.kernels.accept_triton import walk_matching_triton

    deepest = min(most_tokens, tree.tokens.shape[1] - 1)
    winners = distribution.winners(verified.requests, verified.rows)
    return walk_matching_triton(tree=tree, winners=winners, first=verified.first, max_depth=deepest)


def agreed(sync: Any, accepted: TreeAcceptance) -> TreeAcceptance:
    """Rank 0's outcome on every rank: ranks that commit different tokens diverge and hang in the next collective."""
    if not sync.enabled(SpecTpSyncSite.DSPARK_ACCEPT_SAMPLE):
        return accepted
    width = accepted.path.shape[1]
    columns = [accepted.accepted.unsqueeze(1), accepted.bonus.unsqueeze(1), accepted.path, accepted.tokens]
    packed = sync.sync(SpecTpSyncSite.DSPARK_ACCEPT_SAMPLE, torch.cat(columns, dim=1))
    counts, bonus, path, tokens = packed.split([1, 1, width, width], dim=1)
    return TreeAcceptance(counts.squeeze(1), path, tokens, bonus.squeeze(1))
