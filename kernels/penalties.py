"""Frequency, presence and repetition penalties inside a drafted chain: each row as plain decoding would have seen it.

A penalty depends on what was emitted before, so row j's law depends on the drafts of rows before it. Knows nothing of
requests or engines. Order as SGLang's overlapped scheduler applies it (`srt/sampling/sampling_batch_info.py`): what is
added first, then what scales.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Penalties:
    """Strengths [batch] float32 of each request, neutral ones included; None where no request of the batch uses it."""

    frequency: Tensor | None = None
    presence: Tensor | None = None
    repetition: Tensor | None = None


def penalise_chain(*, logits: Tensor, drafts: Tensor, counts: Tensor, penalties: Penalties) -> None:
    """Change `logits` [batch, rows, V] in place.

    `drafts` [batch, rows - 1] int64 are the tokens that rows 1.. follow on; `counts` [batch, V] tells how often each
    request has emitted each token, its anchor included.
    """
    seen = counts.to(logits.dtype, copy=True)
    for row in range(logits.shape[1]):
        if row > 0:
            drafted = drafts[:, row - 1 : row]
            seen.scatter_add_(1, drafted, seen.new_ones(drafted.shape))
        _penalise_row(logits[:, row], seen, penalties)


def _penalise_row(logits: Tensor, seen: Tensor, penalties: Penalties) -> None:
    if penalties.frequency is not None:
        logits.sub_(seen * penalties.frequency.unsqueeze(1))
    if penalties.presence is not None:
        logits.sub_((seen > 0) * penalties.presence.unsqueeze(1))
    if penalties.repetition is not None:
        strength = penalties.repetition.unsqueeze(1)
        scaled = (logits * strength).where(logits < 0, logits / strength)
        logits.copy_(scaled.where(seen > 0, logits))
