"""What followed the latest tokens of a request when its context last had them, as a chain of drafts.

Tensor operations over a batch, on whatever device holds the tokens: nothing is read back, so a CUDA graph takes them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# One token alone recurs by chance; longer matches than these eight are as good.
SHORTEST_MATCH, LONGEST_MATCH = 2, 8


class Lookup(NamedTuple):
    """Drafts of each request: tokens [batch, tokens] int64, matched [batch] int64 length of the match.

    live [batch, tokens] bool: the drafts that exist; with any all before it.
    """

    tokens: Tensor
    matched: Tensor
    live: Tensor

    def first(self, tokens: int) -> "Lookup":
        """Return the lookup with no more than `tokens` drafts of a request."""
        return Lookup(self.tokens[:, :tokens], self.matched, self.live[:, :tokens])


def look_up(*, history: Tensor, lengths: Tensor, tokens: int, vocabulary: int) -> Lookup:
    """Find the longest suffix of each context that it had before (the last such place counts), and what followed.

    Where the context ends before the chain does, it is read on as if it repeated what lies since that place.

    Args:
        history: [batch, width], any integer type: tokens of each request. What lies beyond its length is not read.
        lengths: [batch] int64, tokens of each request, the anchor's included; 0 for none.
        tokens: most drafts of a request.
        vocabulary: drafts end before an id that isn't below, as placeholders of images aren't.
    """
    places = torch.arange(history.shape[1], device=history.device)
    # No token is negative.
    padded = torch.nn.functional.pad(history, (LONGEST_MATCH, 0), value=-1)
    agrees = places < lengths.unsqueeze(1) - 1
    run = torch.zeros_like(agrees, dtype=torch.int64)
    for back in range(LONGEST_MATCH):
        at = lengths - 1 - back
        own = history.gather(1, at.clamp(min=0).unsqueeze(1)).masked_fill(at.unsqueeze(1) < 0, -2)
        first = LONGEST_MATCH - back
        agrees = agrees & (padded[:, first : first + len(places)] == own)
        run = run + agrees
    best = (run * len(places) + places).amax(dim=1)
    matched, end = best // len(places), best % len(places)
    found = matched >= SHORTEST_MATCH
    ahead = torch.arange(tokens, device=history.device)
    since = (lengths - 1 - end).clamp(min=1).unsqueeze(1)
    following = (end.unsqueeze(1) + 1 + ahead % since).clamp(max=len(places) - 1)
    drafts = history.gather(1, following).long()
    known = ((drafts >= 0) & (drafts < vocabulary)).long().cumprod(dim=1).bool()
    live = known & found.unsqueeze(1)
    return Lookup(drafts.masked_fill(~live, 0), matched.where(found, 0), live)
