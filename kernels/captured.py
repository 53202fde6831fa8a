"""Buffers between CUDA graphs and the code around them: what a graph writes stays in place from capture to replay."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class StaticOutputs:
    """What captured functions leave behind, by name: tensors [most, ...] of which a call writes the first rows.

    The first call of each name must not be captured, as it allocates; SGLang runs what it captures once before.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[str, tuple[Tensor, ...]] = {}

    def write(self, name: str, values: Sequence[Tensor]) -> None:
        """Keep `values`, each [n, ...] with n at most `most`; later ones of that name have the same other sizes."""
        if name not in self._kept:
            self._kept[name] = tuple(value.new_zeros(self.most, *value.shape[1:]) for value in values)
        for kept, value in zip(self._kept[name], values, strict=True):
            kept[: len(value)].copy_(value)

    def read(self, name: str, rows: int) -> tuple[Tensor, ...]:
        """Return views of the first `rows` of what `name` wrote last; the next call overwrites them."""
        return tuple(kept[:rows] for kept in self._kept[name])


class StagedInputs(NamedTuple):
    """What a captured draft reads of each request beside its tokens, written before a replay; [most, ...] each.

    temperatures float32, greedy bool, limits [most, 2] int64: most rows, and levels that the request has a use for.
    slots, lengths int64: where a lookup has the request's tokens, and how many; 0 tokens where there is no request.
    """

    temperatures: Tensor
    greedy: Tensor
    limits: Tensor
    slots: Tensor
    lengths: Tensor

    def first(self, rows: int) -> "StagedInputs":
        """Return the inputs of the first `rows` requests, as views."""
        return StagedInputs(*(part[:rows] for part in self))

    def stage_sampling(self, temperatures: Tensor, top_ks: Tensor) -> None:
        """Take both [n]; a request of top_k 1 is greedy."""
        self.temperatures[: len(temperatures)].copy_(temperatures)
        torch.le(top_ks, 1, out=self.greedy[: len(top_ks)])

    def stage_limits(self, limits: Tensor) -> None:
        """Take `limits` [n, 2], from the host without waiting for the device."""
        self.limits[: len(limits)].copy_(limits, non_blocking=True)

    def stage_requests(self, slots: Tensor, seq_lens: Tensor, *, no_slot: int) -> None:
        """Take both [n]; the anchor is one token more than `seq_lens`. Places of no request get the slot `no_slot`."""
        size = len(slots)
        self.slots[:size].copy_(slots)
        self.slots[size:].fill_(no_slot)
        torch.add(seq_lens, 1, out=self.lengths[:size])
        self.lengths[size:].zero_()


def staged_inputs(most: int, *, device: torch.device) -> StagedInputs:
    """Inputs of `most` greedy requests that verify one row each."""
    greedy = torch.ones(most, dtype=torch.bool, device=device)
    limits = torch.ones(most, 2, dtype=torch.int64, device=device)
    nowhere = torch.zeros(2, most, dtype=torch.int64, device=device)
    return StagedInputs(torch.ones(most, dtype=torch.float32, device=device), greedy, limits, *nowhere.unbind())
