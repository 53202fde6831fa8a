"""A lookup's chain among the candidates of a drafter, or without any, chosen by one measure: survival."""

from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.kernels.draft_tree import NO_ROW
from sparktier.kernels.expand import NO_DISTRIBUTION, Candidates
from sparktier.kernels.lookup.counting import AGREED, ALONE, CONTESTED, cells, chances
from sparktier.kernels.lookup.matching import Lookup


class Joined(NamedTuple):
    """Candidates of both sources, and of which kind each token of the lookup is [batch, tokens] int64."""

    candidates: Candidates
    kinds: Tensor


def join(*, candidates: Candidates, lookup: Lookup, counts: Tensor) -> Joined:
    """Put the lookup's chain among a drafter's `candidates`, whose siblings hold distinct tokens.

    Tokens that the drafter has in the same place become no second node; their survival is the larger of both. The rest
    of the chain hangs below the last of them. Survival still never rises along a path.
    """
    # 1. The nodes that hold the chain's own tokens, up to the anchor.
    shared = _shared(candidates, lookup)
    nodes = torch.arange(shared.shape[1], device=shared.device)
    agreed = shared.sum(dim=1, keepdim=True) - 1
    tip = (shared * nodes).amax(dim=1, keepdim=True)
    # 2. What else the drafter has below the last of them competes with the chain's next token.
    contested = ((candidates.parents == tip) & (candidates.survival > 0)).any(dim=1, keepdim=True)
    ahead = torch.arange(lookup.tokens.shape[1], device=shared.device)
    kinds = torch.where((ahead == agreed) & contested, CONTESTED, ALONE).where(ahead >= agreed, AGREED)
    # 3. Survival by what was counted.
    chance = chances(counts)[cells(lookup=lookup, kinds=kinds)]
    survival = chance.cumprod(dim=1)
    own = torch.nn.functional.pad(survival, (1, 0), value=1.0).gather(1, candidates.depths.clamp(max=len(ahead)))
    raised = torch.where(shared, torch.maximum(candidates.survival, own), candidates.survival)
    # 4. The rest of the chain as nodes of its own.
    first = shared.shape[1]
    new = lookup.live & (ahead >= agreed)
    parents = torch.where(ahead == agreed, tip, first + ahead - 1)
    extra = Candidates(
        lookup.tokens,
        parents.where(new, NO_ROW),
        (ahead + 1).expand_as(parents),
        survival * new,
        torch.full_like(parents, NO_DISTRIBUTION),
    )
    joined = candidates._replace(survival=raised)
    return Joined(Candidates(*(torch.cat(parts, dim=1) for parts in zip(joined, extra, strict=True))), kinds)


def better_chain(*, candidates: Candidates, lookup: Lookup, counts: Tensor, most_rows: Tensor) -> Joined:
    """The chain that promises more accepted tokens, the drafter's or the lookup's, both as long at most.

    most_rows [batch] int64: rows of each request that may be verified, its anchor's included.
    """
    tokens = lookup.tokens.shape[1]
    joined = join(candidates=candidates, lookup=lookup, counts=counts)
    survival = joined.candidates.survival
    drafter, extra = survival[:, 1 : tokens + 1], survival[:, tokens + 1 :]
    # Both begin with what they agree on.
    agreed = joined.kinds == AGREED
    looked_up = torch.where(agreed, drafter, extra)
    counted = torch.arange(tokens, device=most_rows.device) < most_rows.unsqueeze(1) - 1
    takes = ((looked_up - drafter) * counted).sum(dim=1, keepdim=True) > 0
    anchor = candidates.tokens[:, :1], candidates.survival[:, :1]
    chain = candidates._replace(
        tokens=torch.cat([anchor[0], torch.where(takes & ~agreed, lookup.tokens, candidates.tokens[:, 1:])], dim=1),
        survival=torch.cat([anchor[1], torch.where(takes, looked_up, drafter)], dim=1),
    )
    return Joined(chain, joined.kinds)


def alone(*, anchors: Tensor, lookup: Lookup, counts: Tensor) -> Joined:
    """The lookup's chain without any drafter: anchors [batch] int64."""
    root = anchors.unsqueeze(1)
    start = torch.zeros_like(root)
    anchor = Candidates(root, start - 1, start, torch.ones_like(root, dtype=torch.float32), start + NO_DISTRIBUTION)
    return join(candidates=anchor, lookup=lookup, counts=counts)


def _shared(candidates: Candidates, lookup: Lookup) -> Tensor:
    """[batch, nodes] bool: the anchor and the nodes on the chain's path from it, one a level."""
    drafts = torch.nn.functional.pad(lookup.tokens, (1, 0))
    live = torch.nn.functional.pad(lookup.live, (1, 0), value=True)
    depths = candidates.depths.clamp(max=lookup.tokens.shape[1])
    holds = (candidates.tokens == drafts.gather(1, depths)) & live.gather(1, depths)
    holds = holds & (candidates.survival > 0) & (candidates.depths <= lookup.tokens.shape[1])
    holds = holds | (candidates.parents < 0)
    # Every round looks twice as far up.
    parents = candidates.parents.clamp(min=0)
    for _ in range(lookup.tokens.shape[1].bit_length()):
        holds = holds & holds.gather(1, parents)
        parents = parents.gather(1, parents)
    return holds
