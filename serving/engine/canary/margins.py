"""How far emitted tokens are from what the target itself chooses, in nats of its logits: 0 for its own choice.

Sampled tokens are measured as sharply as greedy ones: the noise that chose them is keyed by seed and position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparktier.kernels.noise import exponentials
from sparktier.kernels.target_probs import GREEDY_BELOW_TEMPERATURE, SamplingRows, target_probs

MOST_NATS = 30.0
"""The margin of a token that the target gives no chance at all, or of a row whose numbers are broken."""
# Rows at a time: each has some numbers of 8 bytes for every token of the vocabulary.
_ROWS = 64


@dataclass(frozen=True)
class Choice:
    """How a request chooses its tokens, as SGLang's sampling parameters say it; top_k 1 is greedy."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int

    @property
    def is_greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self.top_k == 1 or self.temperature < GREEDY_BELOW_TEMPERATURE


def margins(*, logits: Tensor, tokens: Tensor, positions: Tensor, choice: Choice) -> Tensor:
    """Return how much the logits must change for each of `tokens` to be the target's choice: [n] float64, in nats.

    Args:
        logits: [n, V], of the target.
        tokens: [n] int64, emitted after each row.
        positions: [n] int64, of each row's own token in its sequence.
        choice: of the request.
    """
    measure = _greedy if choice.is_greedy else _sampled
    parts = [slice(start, start + _ROWS) for start in range(0, len(tokens), _ROWS)]
    found = [measure(logits[part], tokens[part], positions[part], choice) for part in parts]
    whole = torch.cat(found) if found else logits.new_zeros(0, dtype=torch.float64)
    return whole.nan_to_num(nan=MOST_NATS, posinf=MOST_NATS).clamp(0.0, MOST_NATS)


def _greedy(logits: Tensor, tokens: Tensor, positions: Tensor, choice: Choice) -> Tensor:
    exact = logits.double()
    return exact.amax(dim=1) - exact.gather(1, tokens.unsqueeze(1)).squeeze(1)


def _sampled(logits: Tensor, tokens: Tensor, positions: Tensor, choice: Choice) -> Tensor:
    """The lead of the race's winner over the token; with filters, bounded by how firmly that winner is kept."""
    n, vocab = logits.shape
    tokens = tokens.unsqueeze(1)
    scaled = torch.log_softmax(logits.double() / choice.temperature, dim=1)
    columns = torch.arange(vocab, device=logits.device)
    seeds = torch.full((n,), choice.seed, dtype=torch.int64, device=logits.device)
    race = scaled - exponentials(seeds=seeds, positions=positions, columns=columns).log()
    lead = race - race.gather(1, tokens)
    kept = target_probs(logits=logits, sampling=_rows(choice, n, vocab, logits.device)) > 0
    if bool(kept.all()):
        return lead.amax(dim=1) * choice.temperature
    # Rounding decides whether the last token that the filters keep is kept, and the first that they don't: the former
    # outruns none for certain, and the latter may be right.
    edge = scaled.masked_fill(~kept, torch.inf).amin(dim=1, keepdim=True)
    lead = torch.minimum(lead, scaled - edge).masked_fill(~kept, 0.0).amax(dim=1)
    below = scaled.masked_fill(kept, -torch.inf).amax(dim=1) - scaled.gather(1, tokens).squeeze(1)
    below = below.masked_fill(kept.gather(1, tokens).squeeze(1), 0.0)
    return torch.maximum(lead, below) * choice.temperature


def _rows(choice: Choice, n: int, vocab: int, device: torch.device) -> SamplingRows:
    def of(value: float, neutral: bool, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return None if neutral else torch.full((n,), value, dtype=dtype, device=device)

    return SamplingRows(
        temperatures=torch.full((n,), choice.temperature, device=device),
        top_ks=of(choice.top_k, choice.top_k >= vocab, torch.int64),
        top_ps=of(choice.top_p, choice.top_p >= 1),
        min_ps=of(choice.min_p, choice.min_p <= 0),
        max_top_k=choice.top_k if choice.top_k < vocab else None,
    )
