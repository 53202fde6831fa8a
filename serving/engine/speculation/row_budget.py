"""The budget of a step: what may be drafted, and how many rows each request verifies, by rung, caps and room left.

Pure tensor maths over a batch; no loop over requests. A row is one token in the verify pass, the anchor's included.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.configs.plan_keys import MAX_TIERS, EnginePlan, Rung
from sparktier.kernels.expand import Shape
from sparktier.serving.engine.rank_options import LadderOptions
from sparktier.serving.engine.speculation.pacing import Pace

_NO_CAP = 1 << 16


class StepBudget(NamedTuple):
    """What one step may draft and verify, decided before anything is drafted.

    draft_tokens: most drafted tokens of one request, 0 for none. branching: whether a tree may have more than one
    branch. shape: bounds of what is drafted. row_counts [batch] int64: rows that each request verifies. useful [batch]
    int64: drafted tokens in a row that each request has a use for, 0 or less for none. pace: the planner's step; where
    it isn't decided it gives each request its rows once the drafts are known, at most `row_counts`. Both tensors are on
    the host. lookup_tokens: most tokens of a chain from the request's own context, which may be deeper than `shape`.
    """

    draft_tokens: int
    branching: bool
    shape: Shape
    row_counts: Tensor
    useful: Tensor
    pace: Pace | None = None
    lookup_tokens: int = 0

    @property
    def depth(self) -> int:
        """Most drafted tokens in a row."""
        return max(self.shape.depth, self.lookup_tokens)

    @property
    def most_rows(self) -> Tensor:
        """[batch] int64: `row_counts`, but no more than a tree of the levels that each request has a use for has."""
        levels = self.useful.clamp(min=0, max=self.shape.depth)
        first = self.shape.children * (levels > 0)
        tree = 1 + first + self.shape.parents * first * (levels - 1).clamp(min=0)
        return torch.minimum(self.row_counts, tree + self.useful.clamp(min=0, max=self.lookup_tokens))

    def to(self, device: torch.device) -> "StepBudget":
        """Return the budget with its tensors on `device`, copied without waiting for it."""
        if device.type == "cpu":
            return self
        counts, useful = torch.stack((self.row_counts, self.useful)).to(device, non_blocking=True).unbind()
        return self._replace(row_counts=counts, useful=useful)

    @property
    def width(self) -> int:
        """A bound on `row_counts` that the host knows."""
        return self.draft_tokens + 1


def step_budget(
    plan: EnginePlan, options: LadderOptions, *, block_tokens: int, caps: Tensor, room: Tensor
) -> StepBudget:
    """Return the budget of a step under `plan`.

    Args:
        plan: in force.
        options: of the ladder.
        block_tokens: what the draft model drafts at once.
        caps: [batch] int64, drafted tokens that each request's tier allows.
        room: [batch] int64, tokens that each request may still emit.
    """
    rows = options.tree.rows if options.tree else 1
    tokens = rung_tokens(plan.rung, block_tokens=block_tokens, short_tokens=options.short_tokens, tree_rows=rows)
    useful = room - 1
    if tokens == 0:
        return StepBudget(0, False, Shape(0, 1, 1), torch.ones_like(room), useful)
    tree = options.tree if plan.rung == Rung.TREE else None
    depth = min(tokens, block_tokens)
    counts = row_counts(
        draft_tokens=tokens,
        row_budget=plan.rows,
        caps=caps,
        # A tree may have more rows than levels; a request that is about to end gets none.
        useful=torch.where(useful > 0, tokens, 0) if tree else useful,
    )
    shape = Shape(depth, tree.parents, tree.children) if tree else Shape(depth, 1, 1)
    lookup_tokens = tokens if options.prompt_lookup else 0
    return StepBudget(tokens, tree is not None, shape, counts, useful, lookup_tokens=lookup_tokens)


def rung_tokens(rung: Rung, *, block_tokens: int, short_tokens: int, tree_rows: int = 1) -> int:
    """Return how many drafted tokens of a request are verified at most on `rung`; no chain is longer than the block."""
    drafted = {
        Rung.OFF: 0,
        Rung.CHAIN_SHORT: min(short_tokens, block_tokens),
        Rung.CHAIN: block_tokens,
        Rung.TREE: tree_rows - 1,
    }
    return drafted[rung]


def tier_caps(plan: EnginePlan, *, device: torch.device) -> Tensor:
    """[MAX_TIERS] int64: drafted tokens that a request of each tier may verify."""
    caps = torch.full((MAX_TIERS,), _NO_CAP, dtype=torch.int64)
    for tier, terms in plan.tiers.items():
        if terms.cap_tokens is not None:
            caps[tier] = min(terms.cap_tokens, _NO_CAP)
    return caps.to(device)


def row_counts(*, draft_tokens: int, row_budget: int, caps: Tensor, useful: Tensor) -> Tensor:
    """[batch] int64, each at least 1.

    `caps` [batch]: drafted tokens that each request's tier allows. `useful` [batch]: drafted tokens that each request
    has a use for, negative counting as none. A budget of `row_budget` rows (0: none) is shared out evenly: rows beyond
    the anchors go round by rank, so that every request gets its first drafted token before any gets its second.
    """
    wanted = torch.minimum(caps, useful).clamp(min=0, max=draft_tokens)
    if row_budget > 0 and draft_tokens > 0:
        wanted = _within(wanted, max(0, row_budget - len(wanted)), draft_tokens)
    return wanted + 1


def _within(wanted: Tensor, spare: int, depth: int) -> Tensor:
    """Cut `wanted` to `spare` in all: whole levels first, the last level to the first requests of the batch."""
    levels = torch.arange(1, depth + 1, device=wanted.device)
    asks = wanted.unsqueeze(1) >= levels  # [batch, depth]
    # Rank of each ask when read level by level, within a level in batch order.
    order = asks.t().flatten().long().cumsum(0).view(depth, len(wanted)).t()
    return (asks & (order <= spare)).sum(dim=1)
