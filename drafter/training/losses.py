"""The three training losses of DSpark, weighted by row, as sums that add up over packed rows and ranks.

Follows DeepSpec `modeling/dspark/loss.py`: its row weight is exp(-k/4) where the paper writes exp(-(k-1)/gamma), and
its total-variation term is the whole L1 distance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sparktier.drafter.data.packing import BlockLabels
from sparktier.drafter.model.draft_model import BlockOutput
from sparktier.drafter.training.distribution_loss import row_losses


@dataclass(frozen=True)
class LossWeights:
    """Shares of the losses, and the number of rows over which a row's weight falls by e."""

    cross_entropy: float = 0.1
    total_variation: float = 0.9
    confidence: float = 1.0
    decay_rows: float = 4.0


@dataclass(frozen=True)
class LossSums:
    """Weighted sums over some blocks; divide by the same sum of weights (`weight_sum`) for means.

    The losses are scalars with gradients. `accepted` and `offered` [gamma] count, without weights, the expected
    acceptances 1 - TV and the valid rows; `length` is the summed expected accepted length, bonus token included,
    of `blocks` blocks under ratio rejection (paper section 2).
    """

    cross_entropy: Tensor
    total_variation: Tensor
    confidence: Tensor
    accepted: Tensor
    offered: Tensor
    length: Tensor
    blocks: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """Return the weighted sum of the three losses."""
        return (
            weights.cross_entropy * self.cross_entropy
            + weights.total_variation * self.total_variation
            + weights.confidence * self.confidence
        )


def row_weights(valid: Tensor, decay_rows: float) -> Tensor:
    """Return exp(-k/decay_rows) on valid rows, 0 elsewhere: [A, gamma] -> [A, gamma]."""
    rows = torch.arange(valid.shape[-1], device=valid.device, dtype=torch.float32)
    return valid * torch.exp(-rows / decay_rows)


def weight_sum(labels: BlockLabels, decay_rows: float) -> float:
    """Return the sum of weights of some blocks; known before any forward, so rows and ranks share one denominator."""
    return float(row_weights(labels.valid, decay_rows).sum())


def loss_sums(output: BlockOutput, decay_rows: float, soft_labels: bool = False) -> LossSums:
    """Sum the losses of one packed row's blocks; `soft_labels` are the target's distributions, not its tokens."""
    weights = row_weights(output.valid, decay_rows)
    surprise, distance = row_losses(output.draft_logits, output.target_logits, output.tokens)
    if soft_labels:
        expected = (output.target_logits.softmax(dim=-1) * output.draft_logits).sum(dim=-1)
        surprise = output.draft_logits.logsumexp(dim=-1) - expected
    # The chance that ratio rejection accepts the row. It depends on the draft; only the confidence head may learn it.
    accept = (1.0 - 0.5 * distance.detach()).clamp(0.0, 1.0)
    confidence = torch.zeros_like(accept)
    if output.confidence is not None:
        confidence = functional.binary_cross_entropy_with_logits(output.confidence, accept, reduction="none")
    kept = accept * output.valid
    return LossSums(
        cross_entropy=(surprise * weights).sum(),
        total_variation=(distance * weights).sum(),
        confidence=(confidence * weights).sum(),
        accepted=kept.sum(dim=0),
        offered=output.valid.sum(dim=0),
        length=((1.0 + kept.cumprod(dim=-1).sum(dim=-1)) * output.valid[:, 0]).sum(),
        blocks=output.valid[:, 0].sum(),
    )
