"""Frequency, presence and repetition penalties on rows of logits, given the tokens emitted before each row.

Order as SGLang's overlapped scheduler applies it (`srt/sampling/sampling_batch_info.py`): what is added first, then
what scales.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Penalties:
    """Strengths [rows] float32, neutral ones included; None where no row uses it."""

    frequency: Tensor | None = None
    presence: Tensor | None = None
    repetition: Tensor | None = None


def penalise(*, logits: Tensor, counts: Tensor, penalties: Penalties) -> None:
    """Penalise `logits` [rows, V] in place; `counts` [rows, V] is how often each token was emitted before the row."""
    seen = counts.to(logits.dtype)
    if penalties.frequency is not None:
        logits.sub_(seen * penalties.frequency.unsqueeze(1))
    if penalties.presence is not None:
        logits.sub_((seen > 0) * penalties.presence.unsqueeze(1))
    if penalties.repetition is not None:
        strength = penalties.repetition.unsqueeze(1)
        scaled = (logits * strength).where(logits < 0, logits / strength)
        logits.copy_(scaled.where(seen > 0, logits))
