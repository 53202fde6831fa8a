"""Packs several sequences into one row; draws anchors, and builds the masks and labels of the draft blocks in it.

A row has no batch dimension and no padding: S tokens, A anchors, gamma rows per block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureRecord:
    """One sequence of the target with its features; the unit of the trainer-engine contract (docs/trainer-engine.md).

    token_ids [n] int64; answer_mask [n] bool, true where the target itself wrote the token; features [n, K*hidden],
    the hidden states after the K chosen layers; last_hidden [n, hidden] after the target's final norm, so that its
    logits for token i+1 are `lm_head(last_hidden[i])`.
    """

    token_ids: Tensor
    answer_mask: Tensor
    features: Tensor
    last_hidden: Tensor


@dataclass(frozen=True)
class PackedRow:
    """Sequences side by side: the fields of `FeatureRecord` for S tokens, and where each token belongs.

    positions [S] restart at 0 in each sequence; segments [S] number the sequences from 0.
    """

    token_ids: Tensor
    answer_mask: Tensor
    features: Tensor
    last_hidden: Tensor
    positions: Tensor
    segments: Tensor

    def to(self, device: torch.device) -> "PackedRow":
        """Return the row on `device`."""
        return PackedRow(**{field.name: moved(getattr(self, field.name), device) for field in fields(self)})


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`, without a wait for what a GPU is doing: from pinned memory."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True)
class BlockLabels:
    """What A blocks must predict: tokens [A, gamma]; sources [A, gamma], the position whose target logits predict that
    token; valid [A, gamma], false from the first token that is not part of the answer on."""

    tokens: Tensor
    sources: Tensor
    valid: Tensor


def pack(records: Sequence[FeatureRecord]) -> PackedRow:
    """Lay records side by side in the order given."""
    lengths = torch.tensor([len(record.token_ids) for record in records])
    return PackedRow(
        token_ids=torch.cat([record.token_ids.long() for record in records]),
        answer_mask=torch.cat([record.answer_mask.bool() for record in records]),
        features=torch.cat([record.features for record in records]),
        last_hidden=torch.cat([record.last_hidden for record in records]),
        positions=torch.cat([torch.arange(int(length)) for length in lengths]),
        segments=torch.repeat_interleave(torch.arange(len(records)), lengths),
    )


def plan_rows(lengths_tokens: Sequence[int], order: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Fill rows greedily in `order`, which keeps the plan a function of lengths alone (a resumed run repeats it).

    A sequence longer than `row_tokens` makes a row of its own.
    """
    rows: list[list[int]] = []
    used = row_tokens
    for index in order:
        if used + lengths_tokens[index] > row_tokens:
            rows.append([])
            used = 0
        rows[-1].append(index)
        used += lengths_tokens[index]
    return rows


def anchor_candidates(row: PackedRow) -> Tensor:
    """Return the positions that may start a block: answer tokens followed by an answer token of the same sequence."""
    follows = row.answer_mask[1:] & (row.segments[1:] == row.segments[:-1])
    return (row.answer_mask[:-1] & follows).nonzero().squeeze(-1)


def has_anchor(answer_mask: Tensor) -> bool:
    """Return whether a sequence with this mask [n] has a position that may start a block."""
    return bool((answer_mask[:-1] & answer_mask[1:]).any())


def sample_anchors(row: PackedRow, count: int, generator: torch.Generator) -> Tensor:
    """Draw up to `count` anchors without replacement, ascending [A]; `generator` lives on the CPU."""
    candidates = anchor_candidates(row)
    chosen = torch.randperm(len(candidates), generator=generator)[:count].to(candidates.device)
    return candidates[chosen].sort().values


def block_labels(row: PackedRow, anchors: Tensor, gamma: int) -> BlockLabels:
    """Return the labels of the blocks at `anchors` [A]: row k predicts offset k+1 (the anchor row predicts too)."""
    sources = anchors.unsqueeze(-1) + torch.arange(gamma, device=anchors.device)
    targets = sources + 1
    inside = targets < len(row.token_ids)
    targets = targets.clamp(max=len(row.token_ids) - 1)
    same = row.segments[targets] == row.segments[anchors].unsqueeze(-1)
    valid = (inside & same & row.answer_mask[targets]).int().cumprod(dim=-1).bool()
    return BlockLabels(tokens=row.token_ids[targets], sources=sources.clamp(max=len(row.token_ids) - 1), valid=valid)


def block_mask(row: PackedRow, anchors: Tensor, gamma: int) -> Tensor:
    """Return [A*gamma, S + A*gamma], true where a block's row may attend.

    A block sees its own sequence strictly before its anchor, and all of itself (as DeepSpec's
    `create_dspark_attention_mask`, with several sequences to a row).
    """
    seen = torch.arange(len(row.token_ids), device=anchors.device)
    context = (row.segments == row.segments[anchors].unsqueeze(-1)) & (seen < anchors.unsqueeze(-1))
    own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device).repeat_interleave(gamma, dim=1)
    return torch.cat((context, own), dim=1).repeat_interleave(gamma, dim=0)
