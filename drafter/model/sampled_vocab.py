"""The subset of the vocabulary that one training step scores, at a fraction of the cost of the whole head.

Sampled softmax (Jean et al. 2015, arXiv 1412.2007): some tokens always, others drawn and weighted by how many they
represent, so that sums over the vocabulary keep their expectation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparktier.drafter.data.packing import moved

# Byte-pair vocabularies are numbered in the order of their merges: low ids are the frequent ones.
CERTAIN_SHARE = 2 / 3


@dataclass(frozen=True)
class VocabSample:
    """A subset of the vocabulary: ids [C] ascending int64; log_weights [C] fp32, the log of the number of tokens that
    each represents, to be added to its logits."""

    ids: Tensor
    log_weights: Tensor

    def to(self, device: torch.device) -> "VocabSample":
        """Return the sample on `device`."""
        return VocabSample(moved(self.ids, device), moved(self.log_weights, device))

    def index_of(self, tokens: Tensor) -> Tensor:
        """Return the indices of `tokens` [...] in `ids`, which must hold them."""
        return torch.searchsorted(self.ids, tokens)


def sample_vocab(count: int, vocab_size: int, own: Tensor, generator: torch.Generator) -> VocabSample:
    """Sample about `count` tokens: the lowest ids for two thirds of them, every token of `own`, others at random.

    Args:
        count: 2 or more, below vocab_size.
        vocab_size: size of the vocabulary.
        own: [n] token ids that must be in the sample.
        generator: of the random part, on the CPU.
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
    return VocabSample(ids.to(own.device), weights[ids].to(own.device))
