"""How often a lookup's drafts are right: counted by the length of the match, and by what a drafter has in their place.

Counts are whole numbers, so ranks that see the same tokens hold the same ones, whatever the order of requests.
"""

import torch
from torch import Tensor

from sparktier.kernels.lookup.matching import LONGEST_MATCH, Lookup

# Whether the drafter has the same token in this place (a), others alone (b), or none (c).
AGREED, CONTESTED, ALONE = range(3)
KINDS = 3
# Before anything was counted: so many drafts were tried after a match of n tokens, and n of n + 2 were right, half as
# many against the drafter.
_PRIOR_TRIALS = 8.0
# Counts are halved there, so that old traffic fades.
_MOST_TRIALS = 1024


def cells(*, lookup: Lookup, kinds: Tensor) -> Tensor:
    """Where each draft is counted: kinds [batch, tokens] -> [batch, tokens] int64, the last cell where there is none.

    A draft is judged only if those before it were right, so the match is longer by them.
    """
    ahead = torch.arange(lookup.tokens.shape[1], device=kinds.device)
    lengths = (lookup.matched.unsqueeze(1) + ahead).clamp(max=LONGEST_MATCH)
    return (kinds * (LONGEST_MATCH + 1) + lengths).where(lookup.live, KINDS * (LONGEST_MATCH + 1))


def no_counts(device: torch.device) -> Tensor:
    """Counts [cells, 2] int64, drafts that were tried and that were right, before there are any."""
    return torch.zeros(KINDS * (LONGEST_MATCH + 1) + 1, 2, dtype=torch.int64, device=device)


def chances(counts: Tensor) -> Tensor:
    """[cells] float32: P(draft accepted | all before it were), 0 in the last cell."""
    lengths = torch.arange(LONGEST_MATCH + 1, dtype=torch.float32, device=counts.device)
    alone = lengths / (lengths + 2.0)
    prior = torch.cat([alone, alone / 2.0, alone])
    tried, right = counts[:-1].float().unbind(1)
    chance = (right + _PRIOR_TRIALS * prior) / (tried + _PRIOR_TRIALS)
    return torch.nn.functional.pad(chance, (0, 1))


def count(*, counts: Tensor, cells: Tensor, drafts: Tensor, emitted: Tensor, known: Tensor) -> None:
    """Add to `counts` what became of drafts, whether they were verified or not.

    Args:
        counts: as `no_counts` makes them; written to.
        cells: [batch, tokens] int64.
        drafts: [batch, tokens] int64.
        emitted: [batch, tokens], the tokens that came in their place.
        known: [batch] int64, how many of them have come so far.
    """
    places = torch.arange(drafts.shape[1], device=drafts.device)
    right = ((emitted == drafts) & (places < known.unsqueeze(1))).long().cumprod(dim=1)
    # The first is always tried, later ones when those before were right.
    tried = torch.nn.functional.pad(right, (1, 0), value=1)[:, :-1] * (places < known.unsqueeze(1))
    seen = torch.stack((tried, right), dim=2).flatten(0, 1)
    counts.index_add_(0, cells.flatten(), seen)
    counts.copy_(torch.where(counts[:, :1] > _MOST_TRIALS, counts // 2, counts))
