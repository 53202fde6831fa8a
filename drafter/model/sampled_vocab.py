"""The columns of the vocabulary that one training step scores, so that a step costs a fraction of the whole head.

Sampled softmax (Jean et al. 2015, arXiv 1412.2007): some columns always, others drawn and weighted by how many they
stand for, so that sums over the vocabulary keep their expectation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Byte-pair vocabularies are numbered in the order of their merges: low ids are the frequent ones.
CERTAIN_SHARE = 2 / 3


@dataclass(frozen=True)
class Columns:
    """Some of the vocabulary: ids [C] ascending int64; log_weights [C] fp32, to be added to logits, is the log of how
    many columns each stands for."""

    ids: Tensor
    log_weights: Tensor

    def places(self, tokens: Tensor) -> Tensor:
        """Return where tokens [...] stand among the ids, which must hold them."""
        return torch.searchsorted(self.ids, tokens)


def draw_columns(count: int, vocab_size: int, own: Tensor, generator: torch.Generator) -> Columns:
    """Choose about `count` columns: the first two thirds of them and every token of `own`, then others at random.

    Args:
        count: 2 or more, below vocab_size.
        vocab_size: columns there are.
        own: [n] token ids that must be among them.
        generator: of the draw, on the CPU.
    """
    certain = torch.zeros(vocab_size, dtype=torch.bool)
    certain[: int(CERTAIN_SHARE * count)] = True
    certain[own.cpu()] = True
    others = (~certain).nonzero().squeeze(1)
    drawn = others[torch.randperm(len(others), generator=generator)[: count - int(CERTAIN_SHARE * count)]]
    weights = torch.zeros(vocab_size)
    weights[drawn] = torch.tensor(len(others) / max(len(drawn), 1)).log()
    certain[drawn] = True
    ids = certain.nonzero().squeeze(1)
    return Columns(ids.to(own.device), weights[ids].to(own.device))
