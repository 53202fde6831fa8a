"""Accept rules for drafted chains: match (greedy and target-match) and ratio rejection. Batched over ragged chains.

Row 0 of a request is its anchor; row j's target distribution verifies draft j. Trees are in accept_tree.py; these two
files are the only place where sparktier decides which drafted tokens are accepted.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.kernels.noise import Stream, draw, stream_seeds, uniforms

PAD_TOKEN = -1  # not 0: a pad that leaks into a token stream must be noticed


class ChainAcceptance(NamedTuple):
    """What one round commits.

    accepted [batch]: number of accepted drafts, 0..gamma. tokens [batch, gamma + 1]: those drafts, then the bonus
    token, then PAD_TOKEN. bonus [batch]: the target's own token after the last accepted draft. All int64.
    """

    accepted: Tensor
    tokens: Tensor
    bonus: Tensor


def accept_matching(*, drafts: Tensor, target_tokens: Tensor, row_counts: Tensor) -> ChainAcceptance:
    """Accept while the draft is what the target itself chose in that row.

    With argmax tokens this is greedy verification. With tokens drawn from the target by noise that is keyed by position
    it is target-match (sample-and-match): exact at any temperature, whatever proposed the drafts, as the output is the
    target's own draw at every position.

    Args:
        drafts: [batch, gamma] int64.
        target_tokens: [batch, gamma + 1] int64, the target's choice in each row.
        row_counts: [batch] int64, rows verified, the anchor's included (1: nothing was drafted).
    """
    is_accepted = (drafts == target_tokens[:, :-1]) & _verified(drafts, row_counts)
    accepted = is_accepted.long().cumprod(dim=1).sum(dim=1)
    bonus = target_tokens.gather(1, accepted.unsqueeze(1)).squeeze(1)
    return ChainAcceptance(accepted, _committed(drafts, accepted, bonus), bonus)


def accept_ratio(
    *, drafts: Tensor, draft_probs: Tensor, target_probs: Tensor, row_counts: Tensor, seeds: Tensor, positions: Tensor
) -> ChainAcceptance:
    """Accept draft x with probability min(1, p(x) / q(x)); after a rejection draw from norm((p - q)+).

    Exact only if every draft was drawn from `draft_probs` itself (same dtype, temperature, filters) by noise that is
    independent of streams ACCEPT and RESIDUAL, and if `row_counts` was fixed without reading the drafts or anything
    computed from them (non-anticipation). Source: Leviathan et al. 2023; Chen et al. 2023; DSpark paper, section 3.2
    and Appendix A.

    Args:
        drafts: [batch, gamma] int64.
        draft_probs: [batch, gamma, V], q.
        target_probs: [batch, gamma + 1, V], p.
        row_counts: [batch] int64, rows verified, the anchor's included.
        seeds: [batch] int64 request seeds.
        positions: [batch, gamma + 1] int64, sequence position of each row's input token.
    """
    proposed = drafts.unsqueeze(2)
    p_drafts = target_probs[:, :-1].gather(2, proposed).squeeze(2).double()
    q_drafts = draft_probs.gather(2, proposed).squeeze(2).double()
    tossed = coins(seeds=seeds, rounds=positions[:, 0], counters=positions[:, :-1])
    is_accepted = (tossed * q_drafts < p_drafts) & _verified(drafts, row_counts)
    accepted = is_accepted.long().cumprod(dim=1).sum(dim=1)
    bonus = draw(
        weights=_last_row_weights(draft_probs, target_probs, accepted, row_counts),
        seeds=stream_seeds(seeds=seeds, stream=Stream.RESIDUAL, rounds=positions[:, 0]),
        positions=positions.gather(1, accepted.unsqueeze(1)).squeeze(1),
    )
    return ChainAcceptance(accepted, _committed(drafts, accepted, bonus), bonus)


def coins(*, seeds: Tensor, rounds: Tensor, counters: Tensor) -> Tensor:
    """The uniforms that decide on a round's drafts: seeds, rounds [batch], counters [batch, n] int64 -> [batch, n].

    One call for all, because each call has a fixed cost. `rounds` are the positions of the anchors.
    """
    keys = stream_seeds(seeds=seeds, stream=Stream.ACCEPT, rounds=rounds)
    flat = uniforms(seeds=keys.unsqueeze(1).expand_as(counters).flatten(), counters=counters.flatten())
    return flat.view(counters.shape)


def residual_weights(*, target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """(p - q)+ per row, not normalised; p where that has no mass. Both [..., V].

    No mass means p = q, where a rejection has probability 0 but for rounding; p is then as good a distribution as any.
    """
    residual = (target_probs - draft_probs).clamp_(min=0.0)
    return torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, target_probs)


def _last_row_weights(draft_probs: Tensor, target_probs: Tensor, accepted: Tensor, row_counts: Tensor) -> Tensor:
    """[batch, V]: the residual after a rejection, plain p when every verified draft was accepted."""
    batch = torch.arange(len(accepted), device=accepted.device)
    p_row = target_probs[batch, accepted]
    if draft_probs.shape[1] == 0:
        return p_row
    q_row = draft_probs[batch, accepted.clamp(max=draft_probs.shape[1] - 1)]
    all_accepted = (accepted == row_counts - 1).unsqueeze(1)
    return torch.where(all_accepted, p_row, residual_weights(target_probs=p_row, draft_probs=q_row))


def _verified(drafts: Tensor, row_counts: Tensor) -> Tensor:
    return torch.arange(drafts.shape[1], device=drafts.device) < row_counts.unsqueeze(1) - 1


def _committed(drafts: Tensor, accepted: Tensor, bonus: Tensor) -> Tensor:
    """Drafts up to `accepted`, then the bonus, then padding: [batch, gamma + 1]."""
    places = torch.arange(drafts.shape[1] + 1, device=drafts.device)
    wide = torch.nn.functional.pad(drafts, (0, 1))
    wide = torch.where(places == accepted.unsqueeze(1), bonus.unsqueeze(1), wide)
    return wide.masked_fill(places > accepted.unsqueeze(1), PAD_TOKEN)
