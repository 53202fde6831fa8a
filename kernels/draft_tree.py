"""The draft tree contract: a ragged batch of trees as three int64 tensors and a row count each.

All code that builds, masks, verifies or compacts trees uses it. The file also has SGLang's links between rows, and the
plan by which KV slots move once a path was accepted.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NO_ROW = -1


class DraftTree(NamedTuple):
    """A batch of draft trees over rows of one verify pass.

    tokens, parents, depths [batch, rows] int64; row_counts [batch] int64. Row 0 is the anchor: the last committed
    token, depth 0, parent NO_ROW. Any other row's parent is an earlier row, its depth is one more than its parent's,
    and siblings hold distinct tokens; siblings that were drawn are in draw order. Rows from `row_counts` on are
    padding: parent NO_ROW, depth 0.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    row_counts: Tensor

    @property
    def live(self) -> Tensor:
        """[batch, rows] bool: the rows that are not padding."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.row_counts.unsqueeze(1)


def anchors_alone(anchors: Tensor) -> DraftTree:
    """Trees of one row, for requests that draft nothing: anchors [batch] int64."""
    tokens = anchors.unsqueeze(1)
    return DraftTree(tokens, torch.full_like(tokens, NO_ROW), torch.zeros_like(tokens), torch.ones_like(anchors))


def chain_tree(*, anchors: Tensor, drafts: Tensor, row_counts: Tensor) -> DraftTree:
    """A chain as a tree of one branch: anchors [batch], drafts [batch, gamma], row_counts [batch], all int64."""
    tokens = torch.cat([anchors.unsqueeze(1), drafts], dim=1)
    depths = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    live = depths < row_counts.unsqueeze(1)
    return DraftTree(tokens, (depths - 1).masked_fill(~live, NO_ROW), depths * live, row_counts)


class RowLinks(NamedTuple):
    """The tree as SGLang's EAGLE verify ops read it; all [batch, rows] int64.

    next_token: first child. next_sibling: next row with the same parent. NO_ROW where
    there is none. Source: SGLang 0.5.23, `kernels/ops/speculative/reconstruct_tree.py`.
    """

    next_token: Tensor
    next_sibling: Tensor


def row_links(*, tree: DraftTree) -> RowLinks:
    """First-child and next-sibling links of every live row."""
    each = torch.arange(tree.tokens.shape[1], device=tree.tokens.device)
    same_parent = (tree.parents.unsqueeze(2) == tree.parents.unsqueeze(1)) & (tree.parents != NO_ROW).unsqueeze(2)
    children = tree.parents.unsqueeze(1) == each.unsqueeze(1)
    return RowLinks(
        next_token=_first(children),
        next_sibling=_first(same_parent & (each.unsqueeze(0) > each.unsqueeze(1))),
    )


class CompactionPlan(NamedTuple):
    """Copy KV of slot source[i, j] to slot destination[i, j]; both [batch, path] int64.

    Every entry is safe to carry out: places beyond the path copy the anchor's slot onto itself. A row never moves to
    a later slot, yet all sources must be read before the first write (`buffer[destination] = buffer[source]` does).
    """

    source: Tensor
    destination: Tensor


def compaction_plan(*, path: Tensor, slots: Tensor) -> CompactionPlan:
    """From the accepted path [batch, path] (rows, then -1) and each row's KV slot [batch, rows], both int64."""
    on_path = path >= 0
    places = torch.arange(path.shape[1], device=path.device)
    return CompactionPlan(
        source=slots.gather(1, path.where(on_path, 0)), destination=slots.gather(1, places.where(on_path, 0))
    )


def _first(flags: Tensor) -> Tensor:
    """Index of the first True along the last axis, NO_ROW where there is none."""
    return torch.where(flags.any(dim=-1), flags.long().argmax(dim=-1), NO_ROW)
