"""What a verify pass needs of a tree beside its mask: rotary positions and SGLang's links between rows.

Knows nothing of masks, KV or acceptance.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.kernels.draft_tree import NO_ROW, DraftTree


class RowLinks(NamedTuple):
    """The tree as SGLang's EAGLE verify ops read it; all [batch, rows] int64.

    flat_row: request * rows + row. next_token: first child. next_sibling: next row with the same parent. NO_ROW where
    there is none. Source: SGLang 0.5.23, `kernels/ops/speculative/reconstruct_tree.py`.
    """

    flat_row: Tensor
    next_token: Tensor
    next_sibling: Tensor


def row_positions(*, tree: DraftTree, prefix_lens: Tensor) -> Tensor:
    """Sequence position of each row's token: prefix + depth, [batch, rows] int64. Siblings share one."""
    return prefix_lens.unsqueeze(1) + tree.depths


def row_links(*, tree: DraftTree) -> RowLinks:
    """First-child and next-sibling links of every live row."""
    batch, rows = tree.tokens.shape
    each = torch.arange(rows, device=tree.tokens.device)
    same_parent = (tree.parents.unsqueeze(2) == tree.parents.unsqueeze(1)) & (tree.parents != NO_ROW).unsqueeze(2)
    children = tree.parents.unsqueeze(1) == each.unsqueeze(1)
    return RowLinks(
        flat_row=torch.arange(batch * rows, device=each.device).view(batch, rows),
        next_token=_first(children),
        next_sibling=_first(same_parent & (each.unsqueeze(0) > each.unsqueeze(1))),
    )


def _first(flags: Tensor) -> Tensor:
    """Index of the first True along the last axis, NO_ROW where there is none."""
    return torch.where(flags.any(dim=-1), flags.long().argmax(dim=-1), NO_ROW)
