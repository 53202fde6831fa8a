"""Consecutive positions of one sequence with their features, and the frames that carry them between two processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Of a request's id: how a rank tells a request for features from all others.
REQUEST_PREFIX = "sparktier-features-"


@dataclass(frozen=True)
class Rows:
    """Positions `start` to `start + len(last_hidden)`: features [rows, K * hidden], last_hidden [rows, hidden]."""

    start: int
    features: Tensor
    last_hidden: Tensor


def frames(request_id: str, rows: Rows) -> list[bytes]:
    """Return `rows` of the sequence that `request_id` asked for as a multipart message."""
    dtype = str(rows.features.dtype).removeprefix("torch.")
    head = f"{request_id} {rows.start} {len(rows.features)} {dtype}"
    return [head.encode(), _bytes(rows.features), _bytes(rows.last_hidden)]


def parsed(message: Sequence[Any]) -> tuple[str, Rows]:
    """Return what `frames` was given; the tensors share the message's memory. Frames are bytes or buffers."""
    head, features, last_hidden = message
    request_id, start, count, dtype = bytes(head).decode().split(" ")
    features, last_hidden = (_tensor(part, dtype, int(count)) for part in (features, last_hidden))
    return request_id, Rows(int(start), features, last_hidden)


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the chunks of one sequence, given from its first position on without a gap, as one."""
    features, last_hidden = (torch.cat([getattr(part, name) for part in parts]) for name in ("features", "last_hidden"))
    return Rows(0, features, last_hidden)


def _bytes(tensor: Tensor) -> bytes:
    # NumPy has no bfloat16.
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _tensor(part: Any, dtype: str, count: int) -> Tensor:
    return torch.frombuffer(bytearray(part), dtype=getattr(torch, dtype)).view(count, -1)
