"""The match walk over winners of blocks, in the place of the kernel where there is no GPU."""

from torch import Tensor

from sparktier.kernels.accept_tree import TreeAcceptance, walk_matching
from sparktier.kernels.draft_tree import DraftTree
from sparktier.kernels.winners import Winners


def walk_of_winners(*, tree: DraftTree, winners: Winners, first: Tensor, max_depth: int) -> TreeAcceptance:
    """As `accept_triton.walk_matching_triton`, which test_triton.py holds to the same oracle."""
    chosen = winners.best
    return walk_matching(tree=tree, choose=lambda of, rows: chosen[first[of] + rows], max_depth=max_depth)
