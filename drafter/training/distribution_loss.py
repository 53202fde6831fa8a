"""Cross entropy and L1 distance of draft rows against the target, some rows at a time, forward and backward.

Autograd would keep half a dozen [rows, vocab] tensors (2 GB each for 512 blocks of 7 rows at a vocabulary of 150
thousand); here backward keeps the two inputs and recomputes the rest chunk by chunk, each in cache.
"""

from typing import Any

import torch
from torch import Tensor

# Rows whose fp32 logits fit a core's cache at a vocabulary of 50 to 150 thousand.
CHUNK_ROWS = 8


def row_losses(draft_logits: Tensor, target_logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log q(token) and ||q - p||_1 of each row, [...] fp32, with gradients for the draft's logits only.

    Args:
        draft_logits, target_logits: [..., vocab], of which q and p are the softmax.
        tokens: [...] int64, the target's own.
    """
    width = draft_logits.shape[-1]
    surprise, distance = _RowLosses.apply(
        draft_logits.reshape(-1, width), target_logits.detach().reshape(-1, width), tokens.reshape(-1)
    )
    return surprise.view(tokens.shape), distance.view(tokens.shape)


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, draft: Tensor, target: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        draft_scale, target_scale = draft.new_empty(len(draft)), target.new_empty(len(draft))
        distance = torch.empty_like(draft_scale)
        for rows in _chunks(len(draft)):
            draft_scale[rows], target_scale[rows] = draft[rows].logsumexp(dim=-1), target[rows].logsumexp(dim=-1)
            q, p = _probabilities(draft, draft_scale, rows), _probabilities(target, target_scale, rows)
            distance[rows] = q.sub_(p).abs_().sum(dim=-1)
        ctx.save_for_backward(draft, target, tokens, draft_scale, target_scale)
        return draft_scale - draft.gather(1, tokens.unsqueeze(1)).squeeze(1), distance

    @staticmethod
    def backward(ctx: Any, surprise_grad: Tensor, distance_grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        draft, target, tokens, draft_scale, target_scale = ctx.saved_tensors
        gradient = torch.empty_like(draft)
        for rows in _chunks(len(draft)):
            q, p = _probabilities(draft, draft_scale, rows), _probabilities(target, target_scale, rows)
            side = torch.sub(q, p, out=p).sign_()
            # Through the softmax: d||q-p||/dz = q * (sign - <q, sign>); d(-log q(x))/dz = q - onehot(x).
            mean = torch.linalg.vecdot(q, side).unsqueeze(1)
            side.sub_(mean).mul_(distance_grad[rows].unsqueeze(1)).add_(surprise_grad[rows].unsqueeze(1))
            torch.mul(q, side, out=gradient[rows])
        gradient.scatter_add_(1, tokens.unsqueeze(1), -surprise_grad.unsqueeze(1))
        return gradient, None, None


def _chunks(rows: int) -> list[slice]:
    return [slice(start, start + CHUNK_ROWS) for start in range(0, rows, CHUNK_ROWS)]


def _probabilities(logits: Tensor, scales: Tensor, rows: slice) -> Tensor:
    return torch.exp(logits[rows] - scales[rows].unsqueeze(1))
