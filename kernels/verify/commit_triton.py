"""What follows from an accepted path, on a GPU in one launch. `commit.commit_of` is the oracle."""

# Triton code is typed by its own compiler.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparktier.kernels.accept import PAD_TOKEN
from sparktier.kernels.accept_tree import TreeAcceptance
from sparktier.kernels.target_probs import NO_TOKEN


def commit_triton(
    *, accepted: TreeAcceptance, depths: Tensor, seq_lens: Tensor, slots: Tensor, first: Tensor
) -> tuple[Tensor, ...]:
    """As `commit.commit_of`: the parts of what it returns, in order."""
    batch, levels = accepted.path.shape
    # Tensors of one type lie in one piece: an allocation each would cost more of the host's time than the kernel.
    per_request = torch.empty(3, batch, dtype=torch.int64, device=seq_lens.device)
    per_level = torch.empty(5, batch, levels, dtype=torch.int64, device=seq_lens.device)
    lengths = torch.empty(batch, dtype=torch.int32, device=seq_lens.device)
    silent = torch.empty(batch, dtype=torch.bool, device=seq_lens.device)
    _commit_kernel[(batch,)](
        accepted.accepted.contiguous(),
        accepted.path.contiguous(),
        accepted.tokens.contiguous(),
        accepted.bonus.contiguous(),
        depths,
        seq_lens,
        slots,
        first,
        per_request,
        per_level,
        lengths,
        silent,
        batch,
        levels,
        depths.shape[1],
        depths.stride(0),
        slots.stride(0),
        LEVELS=triton.next_power_of_2(levels),
        WIDTH=triton.next_power_of_2(depths.shape[1]),
        PAD=PAD_TOKEN,
        NO_TOKEN=NO_TOKEN,
    )
    new_seq_lens, anchors, deepest = per_request.unbind()
    tokens, places, positions, source, destination = per_level.unbind()
    return (lengths, new_seq_lens, tokens, anchors, silent, deepest, places, positions, source, destination)


@triton.jit
def _commit_kernel(
    accepted,
    path,
    tokens,
    bonus,
    depths,
    seq_lens,
    slots,
    first,
    per_request,
    per_level,
    lengths,
    silent,
    batch,
    levels,
    rows,
    depth_stride,
    slot_stride,
    LEVELS: tl.constexpr,
    WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    NO_TOKEN: tl.constexpr,
):
    """One request."""
    request = tl.program_id(0).to(tl.int64)
    each = tl.arange(0, LEVELS)
    inside = each < levels
    committed = tl.load(seq_lens + request)
    emitted = tl.load(accepted + request) + 1
    anchor = tl.load(bonus + request)
    row = tl.arange(0, WIDTH)
    deepest = tl.max(tl.load(depths + request * depth_stride + row, mask=row < rows, other=0), axis=0)
    tl.store(lengths + request, emitted.to(tl.int32))
    tl.store(silent + request, anchor == NO_TOKEN)
    tl.store(per_request + request, committed + emitted)
    tl.store(per_request + batch + request, tl.maximum(anchor, 0))
    tl.store(per_request + 2 * batch + request, deepest)
    taken = tl.load(path + request * levels + each, mask=inside, other=-1)
    token = tl.load(tokens + request * levels + each, mask=inside, other=PAD)
    on_path = taken >= 0
    seen = tl.where(on_path, taken, 0)
    slot = slots + request * slot_stride
    place = request * levels + each
    size = batch * levels
    tl.store(per_level + place, tl.where(token == PAD, 0, token), mask=inside)
    tl.store(per_level + size + place, tl.load(first + request) + seen, mask=inside)
    tl.store(per_level + 2 * size + place, committed + each, mask=inside)
    tl.store(per_level + 3 * size + place, tl.load(slot + seen, mask=inside, other=0), mask=inside)
    to = tl.where(on_path, each, 0)
    tl.store(per_level + 4 * size + place, tl.load(slot + to, mask=inside, other=0), mask=inside)
