"""Which KV slots move where after a round, so that the accepted path lies at the front of its window.

A plan of slot numbers only; knows nothing of KV buffers or layers.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class CompactionPlan(NamedTuple):
    """Copy KV of slot source[i, j] to slot destination[i, j]; both [batch, path] int64.

    Every entry is safe to carry out: places beyond the path copy the anchor's slot onto itself. A row never moves to
    a later slot, yet all sources must be read before the first write (`buffer[destination] = buffer[source]` does).
    """

    source: Tensor
    destination: Tensor


def compaction_plan(*, path: Tensor, slots: Tensor) -> CompactionPlan:
    """From the accepted path [batch, path] (rows, then -1) and each row's KV slot [batch, rows], both int64."""
    on_path = path >= 0
    places = torch.arange(path.shape[1], device=path.device)
    return CompactionPlan(
        source=slots.gather(1, path.where(on_path, 0)), destination=slots.gather(1, places.where(on_path, 0))
    )
