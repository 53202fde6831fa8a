"""Features of consecutive positions of one sequence, and the messages that carry them between processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A rank recognises requests for features by this prefix of their id.
REQUEST_PREFIX = "sparktier-features-"


@dataclass(frozen=True)
class FeatureRows:
    """Positions from `start` on: features [rows, K * hidden], last_hidden [rows, hidden]."""

    start: int
    features: Tensor
    last_hidden: Tensor


def frames(request_id: str, rows: FeatureRows) -> list[bytes]:
    """Return `rows` of the request `request_id` as a multipart message."""
    dtype = str(rows.features.dtype).removeprefix("torch.")
    head = f"{request_id} {rows.start} {len(rows.features)} {dtype}"
    return [head.encode(), _bytes(rows.features), _bytes(rows.last_hidden)]


def parsed(message: Sequence[Any]) -> tuple[str, FeatureRows]:
    """Return the request id and rows of a message of `frames`, given as bytes or buffers; tensors share its memory."""
    head, features, last_hidden = message
    request_id, start, count, dtype = bytes(head).decode().split(" ")
    features, last_hidden = (_tensor(part, dtype, int(count)) for part in (features, last_hidden))
    return request_id, FeatureRows(int(start), features, last_hidden)


def joined(parts: Sequence[FeatureRows]) -> FeatureRows:
    """Join the chunks of one sequence, given in order and without gaps."""
    features, last_hidden = (torch.cat([getattr(part, name) for part in parts]) for name in ("features", "last_hidden"))
    return FeatureRows(0, features, last_hidden)


def _bytes(tensor: Tensor) -> bytes:
    # NumPy has no bfloat16.
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _tensor(part: Any, dtype: str, count: int) -> Tensor:
    return torch.frombuffer(bytearray(part), dtype=getattr(torch, dtype)).view(count, -1)
