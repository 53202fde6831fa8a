"""A chi-square test that emitted sequences follow the target's distribution, for every accept rule, right or wrong.

The toy world is a Markov chain: the target and the drafter each are one [V, V] matrix of next-token probabilities.
"""

import torch
from scipy.stats import chisquare
from torch import Tensor

EXACT_ABOVE_P = 1e-3  # seeds are fixed: an exact rule passes for ever once it passed
WRONG_BELOW_P = 1e-9  # what a planted wrong rule must reach, so that the test is known to have the power


def toy_matrix(*, vocab: int, sharpness: float, seed: int) -> Tensor:
    """Next-token probabilities [V, V] float32 of a random Markov chain."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharpness * torch.randn(vocab, vocab, generator=generator), dim=1)


def sequence_distribution(*, target: Tensor, anchor: int, length: int) -> Tensor:
    """Probability of each sequence of `length` tokens after `anchor`, flat [V ** length] float64."""
    distribution = target[anchor].double()
    for _ in range(length - 1):
        distribution = (
            distribution.unsqueeze(-1) * target.double().repeat(distribution.numel() // len(target), 1)
        ).flatten()
    return distribution


def completed(*, committed: Tensor, target: Tensor, seed: int) -> Tensor:
    """Fill the padding (-1) after each row of committed tokens [n, length] by plain sampling from the target."""
    generator = torch.Generator().manual_seed(seed)
    tokens = committed.clone()
    for place in range(1, tokens.shape[1]):
        fresh = torch.multinomial(target[tokens[:, place - 1]], 1, generator=generator).squeeze(1)
        tokens[:, place] = torch.where(tokens[:, place] < 0, fresh, tokens[:, place])
    return tokens


def p_value(*, tokens: Tensor, distribution: Tensor, vocab: int) -> float:
    """Chi-square p-value that sequences tokens [n, length] follow `distribution` [V ** length]."""
    codes = torch.zeros(len(tokens), dtype=torch.int64)
    for place in range(tokens.shape[1]):
        codes = codes * vocab + tokens[:, place]
    observed = torch.bincount(codes, minlength=len(distribution)).double()
    expected = distribution / distribution.sum() * len(tokens)
    assert float(expected.min()) > 5, "too few samples for the chi-square approximation"
    return float(chisquare(observed.numpy(), expected.numpy()).pvalue)
