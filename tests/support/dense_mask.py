"""The tree mask as plain flags, which attention on float32 takes; the product's own masks are packed."""

import torch
from torch import Tensor

from sparktier.kernels.mask import visible


def dense_mask(*, words: Tensor, row_counts: Tensor, prefix_lens: Tensor, width: int) -> Tensor:
    """[batch, rows, width] bool over columns 0..width, for attention that takes a plain mask; width is host-known."""
    batch, rows, _ = words.shape
    grid = torch.meshgrid(*(torch.arange(size, device=words.device) for size in (batch, rows, width)), indexing="ij")
    inside = grid[2] < (prefix_lens + rows).view(-1, 1, 1)
    requests, row_ids, columns = grid
    return inside & visible(
        words=words, row_counts=row_counts, prefix_lens=prefix_lens, requests=requests, rows=row_ids, columns=columns
    )
