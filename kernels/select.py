"""Selects the candidates of a verify pass: the likeliest ones within each request's row budget.

Survival never rises along a path, so the best set is already closed under ancestors. Deterministic to the last tie:
ranks that hold the same candidates choose the same tree.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.kernels.draft_tree import NO_ROW, DraftTree
from sparktier.kernels.expand import Candidates


class Selection(NamedTuple):
    """The tree of a verify pass; distributions [batch, width] int64: of each row's candidate (see `Candidates`)."""

    tree: DraftTree
    distributions: Tensor


def reachable(*, candidates: Candidates, useful: Tensor) -> Candidates:
    """`candidates` with survival 0 below the `useful` [batch] int64 levels that each request has a use for."""
    beyond = candidates.depths > useful.clamp(min=0).unsqueeze(1)
    return candidates._replace(survival=candidates.survival.masked_fill(beyond, 0.0))


def highest(*, survival: Tensor, nodes: int) -> Tensor:
    """[batch, at most nodes], falling: the highest of `survival` [batch, candidates], without the anchor's."""
    return survival.sort(dim=1, descending=True).values[:, 1 : nodes + 1]


def select_rows(*, candidates: Candidates, row_budgets: Tensor, width: int) -> Selection:
    """Keep at most `row_budgets` [batch] rows per request, the anchor's included, by falling survival.

    Ties go to the earlier candidate, so a parent always precedes its children and a sibling drawn earlier its later
    ones. Candidates with survival 0 hold nothing and stay out.

    Args:
        candidates: of `expand`.
        row_budgets: [batch] int64 in 1..width.
        width: rows of the resulting tensors, a bound on every budget known on the host.
    """
    order = candidates.survival.argsort(dim=1, descending=True, stable=True)
    each = torch.arange(order.shape[1], device=order.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, each)
    chosen = (ranks < row_budgets.unsqueeze(1)) & (candidates.survival > 0)
    rows = (chosen.long().cumsum(dim=1) - 1).masked_fill(~chosen, width)
    nodes = torch.zeros_like(order[:, :1]).expand(-1, width + 1).scatter(1, rows, each)[:, :width]
    counts = chosen.sum(dim=1)
    return Selection(_as_tree(candidates, nodes, rows, counts), candidates.distributions.gather(1, nodes))


def _as_tree(candidates: Candidates, nodes: Tensor, rows: Tensor, counts: Tensor) -> DraftTree:
    live = torch.arange(nodes.shape[1], device=nodes.device) < counts.unsqueeze(1)
    parent_nodes = candidates.parents.gather(1, nodes)
    drafted = live & (parent_nodes >= 0)
    parents = torch.where(drafted, rows.gather(1, parent_nodes.clamp(min=0)), NO_ROW)
    depths = candidates.depths.gather(1, nodes) * live
    return DraftTree(candidates.tokens.gather(1, nodes) * live, parents, depths, counts)
