"""The match walk on a GPU in one launch, given the winners of every verified row.

`accept_tree.walk_matching` is its oracle; `speculation/accept_step.py` says when which of them runs.
"""

# Triton code is typed by its own compiler.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparktier.kernels.accept import PAD_TOKEN
from sparktier.kernels.accept_tree import TreeAcceptance
from sparktier.kernels.draft_tree import NO_ROW, DraftTree
from sparktier.kernels.winners import Winners


def walk_matching_triton(*, tree: DraftTree, winners: Winners, first: Tensor, max_depth: int) -> TreeAcceptance:
    """As `accept_tree.walk_matching`; row j of request b is row `first[b] + j` of `winners`, first [batch] int64."""
    batch, rows = tree.tokens.shape
    path = tree.tokens.new_empty(batch, max_depth + 1)
    tokens = torch.empty_like(path)
    accepted, bonus = torch.empty_like(tree.row_counts), torch.empty_like(tree.row_counts)
    given = (part.contiguous() for part in (tree.tokens, tree.parents, *winners, first))
    blocks = winners.tokens.shape[1]
    _walk_kernel[(batch,)](
        *given,
        path,
        tokens,
        accepted,
        bonus,
        rows,
        max_depth + 1,
        blocks,
        WIDTH=triton.next_power_of_2(rows),
        BLOCKS=triton.next_power_of_2(blocks),
        NO_ROW=NO_ROW,
        PAD=PAD_TOKEN,
    )
    return TreeAcceptance(accepted, path, tokens, bonus)


@triton.jit
def _walk_kernel(
    drafted,
    parents,
    scores,
    winners,
    first,
    path,
    tokens,
    accepted_out,
    bonus_out,
    rows,
    levels,
    blocks,
    WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    NO_ROW: tl.constexpr,
    PAD: tl.constexpr,
):
    """One request: from the anchor to the child that holds the chosen token, until there is none."""
    request = tl.program_id(0).to(tl.int64)
    each = tl.arange(0, WIDTH)
    inside = each < rows
    row_tokens = tl.load(drafted + request * rows + each, mask=inside, other=-1)
    row_parents = tl.load(parents + request * rows + each, mask=inside, other=-1)
    block = tl.arange(0, BLOCKS)
    start = tl.load(first + request)
    node = tl.zeros([], dtype=tl.int32)
    accepted = tl.zeros([], dtype=tl.int32)
    walking = node == 0
    bonus = tl.zeros([], dtype=tl.int64)
    for level in range(levels):
        row = (start + node) * blocks
        score = tl.load(scores + row + block, mask=block < blocks, other=0).to(tl.float64)
        score = tl.where(block < blocks, score, float("-inf"))
        is_best = (score == tl.max(score, axis=0)) & (block < blocks)
        chosen = tl.load(winners + row + tl.min(tl.where(is_best, block, BLOCKS), axis=0))
        place = request * levels + level
        tl.store(path + place, tl.where(walking, node, NO_ROW).to(tl.int64))
        tl.store(tokens + place, tl.where(walking, chosen, PAD))
        bonus = tl.where(walking, chosen, bonus)
        is_next = (row_parents == node) & (row_tokens == chosen) & inside
        child = tl.min(tl.where(is_next, each, WIDTH), axis=0)
        walking = walking & (child < WIDTH)
        accepted += walking.to(tl.int32)
        node = tl.where(walking, child, node)
    tl.store(accepted_out + request, accepted.to(tl.int64))
    tl.store(bonus_out + request, bonus)
