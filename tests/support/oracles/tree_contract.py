"""Checks that a draft tree keeps every rule of its contract (`kernels/draft_tree.py`)."""

import torch
from torch import Tensor

from sparktier.configs.errors import SparktierError
from sparktier.kernels.draft_tree import NO_ROW, DraftTree


def check_tree(tree: DraftTree) -> None:
    """Raise SparktierError with the first broken rule, and where."""
    shape = tuple(tree.tokens.shape)
    if any(tuple(part.shape) != shape for part in tree[1:3]) or tuple(tree.row_counts.shape) != shape[:1]:
        raise SparktierError(f"draft tree: tokens, parents and depths share [batch, rows], got {_shapes(tree)}")
    rows = torch.arange(shape[1], device=tree.tokens.device).expand(shape)
    child = tree.live & (rows > 0)
    parent = tree.parents.clamp(min=0)
    _refuse((tree.row_counts < 1) | (tree.row_counts > shape[1]), f"row counts lie in 1..{shape[1]}", tree.row_counts)
    _refuse(~child & (tree.parents != NO_ROW), "the anchor and padding rows have parent -1", tree.parents)
    _refuse(~child & (tree.depths != 0), "the anchor and padding rows have depth 0", tree.depths)
    _refuse(child & ((tree.parents < 0) | (tree.parents >= rows)), "a parent is an earlier row", tree.parents)
    _refuse(child & (tree.depths != tree.depths.gather(1, parent) + 1), "depth is the parent's plus 1", tree.depths)
    _refuse(_repeats_a_sibling(tree, child), "siblings hold distinct tokens", tree.tokens)


def _repeats_a_sibling(tree: DraftTree, child: Tensor) -> Tensor:
    """[batch, rows] bool: an earlier row has the same parent and token."""
    same = (tree.parents.unsqueeze(2) == tree.parents.unsqueeze(1)) & child.unsqueeze(2) & child.unsqueeze(1)
    same &= tree.tokens.unsqueeze(2) == tree.tokens.unsqueeze(1)
    return same.tril(-1).any(dim=2)


def _refuse(broken: Tensor, rule: str, values: Tensor) -> None:
    places = broken.nonzero()
    if len(places):
        where = places[0].tolist()
        raise SparktierError(f"draft tree: {rule}, got {int(values[tuple(where)])} at [request, row] {where}")


def _shapes(tree: DraftTree) -> str:
    return ", ".join(f"{name} {tuple(part.shape)}" for name, part in tree._asdict().items())
