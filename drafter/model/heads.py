"""The sequential heads of DSpark: Markov corrections of a block's logits, and the confidence of each draft token.

Equations: DSpark paper 3.2 and 3.3; where the gated head differs there we follow DeepSpec's `markov_head.py` (the gate
sees hidden and token).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparktier.drafter.model.config import DraftConfig


class MarkovHead(nn.Module):
    """The memoryless head: bias = W2 W1[x_{k-1}], a low-rank bigram table (paper eq. 4)."""

    def __init__(self, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, vocab_size, bias=False)

    def initial_state(self, hidden: Tensor) -> Tensor | None:
        """Return what `step` carries along a block; `hidden` is [..., hidden] of any row."""
        del hidden
        return None

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Correct one row.

        Args:
            previous: [...] token at the row before (the anchor, for the first row).
            hidden: [..., hidden] this row's backbone output.
            state: what the row before returned.

        Returns:
            [..., vocab] to add to the row's base logits, and the state for the next row.
        """
        code, state = self.advance(previous, hidden, state)
        bias: Tensor = self.markov_w2(code)
        return bias, state

    def advance(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return a row's code [..., rank], which `markov_w2` turns into a bias, and the next state; args as `step`."""
        del hidden
        code: Tensor = self.markov_w1(previous)
        return code, state

    def codes(self, previous: Tensor, hidden: Tensor) -> Tensor:
        """Return [..., gamma, rank] for blocks whose earlier tokens are known: [..., gamma], [..., gamma, hidden]."""
        return self.advance(previous, hidden, None)[0]


class GatedMarkovHead(MarkovHead):
    """Scales the token's code by a gate that sees the row's hidden state."""

    def __init__(self, vocab_size: int, rank: int, hidden_size: int) -> None:
        super().__init__(vocab_size, rank)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def advance(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        code = self.markov_w1(previous)
        gate = torch.sigmoid(self.gate_proj(torch.cat((hidden, code), dim=-1)))
        return gate.to(code.dtype) * code, state


class RnnMarkovHead(MarkovHead):
    """Carries a gated recurrent state, so a row sees every earlier token of the block (paper eq. 5)."""

    def __init__(self, vocab_size: int, rank: int, hidden_size: int) -> None:
        super().__init__(vocab_size, rank)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def initial_state(self, hidden: Tensor) -> Tensor | None:
        return hidden.new_zeros((*hidden.shape[:-1], self.rank))

    def advance(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert state is not None
        joint = torch.cat((state.to(hidden.dtype), self.markov_w1(previous).to(hidden.dtype), hidden), dim=-1)
        gate, candidate, output = self.joint_proj(joint).chunk(3, dim=-1)
        gate = torch.sigmoid(gate)
        kept = gate * state + (1.0 - gate) * torch.tanh(candidate)
        return torch.tanh(output), kept

    def codes(self, previous: Tensor, hidden: Tensor) -> Tensor:
        state = self.initial_state(hidden[..., 0, :])
        codes = []
        for row in range(previous.shape[-1]):
            code, state = self.advance(previous[..., row], hidden[..., row, :], state)
            codes.append(code)
        return torch.stack(codes, dim=-2)


class ConfidenceHead(nn.Module):
    """Estimates the chance 1 - TV(draft, target) that a row's token is accepted (paper eq. 7).

    It reads x_{k-1}, never x_k: admission by confidence may not look at the token it admits.
    """

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size + rank, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the raw logit [...] from [..., hidden + rank]: a row's hidden state and the previous token's code."""
        # A dot product by hand: autocast would run a linear layer in bf16, and SGLang keeps this head in fp32.
        return (inputs.float() * self.proj.weight.float().squeeze(0)).sum(dim=-1) + self.proj.bias.float()


class LinearHead(NamedTuple):
    """A confidence head: weight [width] and bias of its raw logit."""

    weight: NDArray[np.float64]
    bias: float

    def logits(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return raw logits [...] of inputs [..., width]."""
        logits: NDArray[np.float64] = np.asarray(inputs @ self.weight.astype(np.float32), dtype=np.float64) + self.bias
        return logits


def build_markov_head(config: DraftConfig) -> MarkovHead | None:
    """Return the head that the config names, or None for rank 0."""
    if not config.markov_rank:
        return None
    if config.markov_head_type == "gated":
        return GatedMarkovHead(config.vocab_size, config.markov_rank, config.hidden_size)
    if config.markov_head_type == "rnn":
        return RnnMarkovHead(config.vocab_size, config.markov_rank, config.hidden_size)
    return MarkovHead(config.vocab_size, config.markov_rank)


def build_confidence_head(config: DraftConfig) -> ConfidenceHead | None:
    """Return the confidence head if the config has one."""
    if not config.enable_confidence_head:
        return None
    return ConfidenceHead(config.hidden_size, config.markov_rank if config.confidence_head_with_markov else 0)
