"""How many rows each request of a batch verifies in the coming step: the rung, caps, budget and room it has left.

Pure tensor maths over a batch; no loop over requests. A row is one token in the verify pass, the anchor's included.
"""

import torch
from torch import Tensor

from sparktier.configs.plan_keys import MAX_TIERS, NO_CAP, Plan, Rung


def rung_tokens(rung: Rung, *, block_tokens: int, short_tokens: int, tree_rows: int = 1) -> int:
    """Return how many drafted tokens of a request are verified at most on `rung`; no chain is longer than the block."""
    drafted = {
        Rung.OFF: 0,
        Rung.CHAIN_SHORT: min(short_tokens, block_tokens),
        Rung.CHAIN: block_tokens,
        Rung.TREE: tree_rows - 1,
    }
    return drafted[rung]


def tier_caps(plan: Plan, *, device: torch.device) -> Tensor:
    """[MAX_TIERS] int64: drafted tokens that a request of each tier may verify."""
    caps = torch.full((MAX_TIERS,), NO_CAP, dtype=torch.int64)
    for tier, share in plan.tiers.items():
        caps[tier] = share.cap
    return caps.to(device)


def row_counts(*, draft_tokens: int, row_budget: int, caps: Tensor, useful: Tensor) -> Tensor:
    """[batch] int64, each at least 1.

    `caps` [batch]: drafted tokens that each request's tier allows. `useful` [batch]: drafted tokens that each request
    has a use for, negative counting as none. A budget of `row_budget` rows (0: none) is shared out evenly: rows beyond
    the anchors go round by rank, so that the first drafted token of everybody comes before anyone's second.
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
