"""What follows from an accepted path: new lengths, what is emitted, which KV moves where, whose features a draft reads.

On a GPU one kernel (commit_triton.py), of which this is the oracle.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.kernels.accept import PAD_TOKEN
from sparktier.kernels.accept_tree import TreeAcceptance
from sparktier.kernels.draft_tree import compaction_plan
from sparktier.kernels.target_probs import NO_TOKEN


class Commit(NamedTuple):
    """What a step adds to its requests.

    lengths [batch] int32: tokens that are emitted. new_seq_lens [batch]: with them. tokens [batch, levels] int64:
    those, then 0. anchors [batch] int64: the next step's, 0 where the target had none; silent [batch] bool: there.
    depths [batch] int64: levels that were drafted. places, positions [batch, levels] int64: rows of the pass whose
    features the draft reads, the anchor's again below the path's end, and where they are written. source, destination
    [batch, levels] int64: KV slots to read and then to write, the anchor's onto itself below the path's end.
    """

    lengths: Tensor
    new_seq_lens: Tensor
    tokens: Tensor
    anchors: Tensor
    silent: Tensor
    depths: Tensor
    places: Tensor
    positions: Tensor
    source: Tensor
    destination: Tensor


def commit_of(*, accepted: TreeAcceptance, depths: Tensor, seq_lens: Tensor, slots: Tensor, first: Tensor) -> Commit:
    """Return what `accepted` comes to.

    Args:
        accepted: of a pass.
        depths: [batch, rows] int64, of the tree.
        seq_lens: [batch] int64, committed before the step.
        slots: [batch, at least levels] int64, KV slots of each request's rows.
        first: [batch] int64, where each request's rows begin among those of the pass.
    """
    if accepted.path.is_cuda:
        from sparktier.kernels.verify.commit_triton import commit_triton

        return Commit(*commit_triton(accepted=accepted, depths=depths, seq_lens=seq_lens, slots=slots, first=first))
    lengths = accepted.accepted + 1
    steps = torch.arange(accepted.path.shape[1], device=seq_lens.device)
    moves = compaction_plan(path=accepted.path, slots=slots)
    return Commit(
        lengths=lengths.to(torch.int32),
        new_seq_lens=seq_lens + lengths,
        tokens=accepted.tokens.masked_fill(accepted.tokens == PAD_TOKEN, 0),
        anchors=accepted.bonus.clamp(min=0),
        silent=accepted.bonus == NO_TOKEN,
        depths=depths.amax(dim=1),
        places=first.unsqueeze(1) + accepted.path.clamp(min=0),
        positions=seq_lens.unsqueeze(1) + steps,
        source=moves.source,
        destination=moves.destination,
    )
