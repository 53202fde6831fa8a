"""Computes the distribution p that acceptance must reproduce from target logits: temperature, top-k, top-p, min-p.

Order and kept sets are SGLang's, so that speculation changes no request's distribution. The caller applies penalties,
logit bias and grammar masks to the logits before.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparktier.kernels.vocab_search import best_token

NO_TOKEN = -1
"""What is chosen in a row of logits whose largest is not finite: a mask left no token, or the numbers broke."""

# SGLang turns any lower temperature into top_k = 1 (srt/sampling/sampling_params.py).
GREEDY_BELOW_TEMPERATURE = 1e-6
# A CPU sorts a vocabulary many times slower than it finds this many of its largest, which hold nearly every kept set.
_LEAD = 4096


@dataclass(frozen=True)
class SamplingRows:
    """Sampling parameters, one per row of logits. None: no row uses that filter (known on the host, so no sync).

    Args:
        temperatures: [rows] float32; below 1e-6 means greedy.
        top_ks: [rows] int, at least 1; 1 means greedy, anything >= V keeps all.
        top_ps: [rows] float32 in (0, 1].
        min_ps: [rows] float32 in [0, 1].
        max_top_k: host-side bound on every top_k, where there is one: replaces the full sort by a partial one.
    """

    temperatures: Tensor
    top_ks: Tensor | None = None
    top_ps: Tensor | None = None
    min_ps: Tensor | None = None
    max_top_k: int | None = None

    def take(self, rows: Tensor) -> "SamplingRows":
        """The parameters of the given rows [n] int64, repeats allowed: of requests, say, for their rows."""
        top_ks, top_ps, min_ps = (None if p is None else p[rows] for p in (self.top_ks, self.top_ps, self.min_ps))
        return SamplingRows(self.temperatures[rows], top_ks, top_ps, min_ps, self.max_top_k)


def greedy_tokens(*, logits: Tensor) -> Tensor:
    """The greedy token of each row, lowest id among ties: [..., V] -> [...] int64; NO_TOKEN where none is finite."""
    tokens = best_token(scores=logits)
    # torch ranks NaN highest, so the best one tells of the whole row.
    best = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return tokens.where(best.isfinite(), NO_TOKEN)


def target_probs(*, logits: Tensor, sampling: SamplingRows) -> Tensor:
    """The distribution that plain sampling would draw from: logits [rows, V] of any float dtype -> [rows, V] float32.

    Softmax at the temperature; keep ranks below top_k, then ranks whose preceding mass (before top-k, not renormalised)
    is at most top_p, then probabilities of at least min_p times the largest; renormalise. Tied tokens rank by id. A
    greedy row is one-hot at the argmax of its *logits*: the softmax can tie what the logits order. A row that has NaN,
    +inf or nothing but -inf has no distribution: all its probabilities are 0.
    Source: SGLang 0.5.23, `srt/layers/sampler.py`, `top_k_top_p_min_p_sampling_from_probs_torch`.
    """
    temperatures = sampling.temperatures.clamp(min=GREEDY_BELOW_TEMPERATURE).unsqueeze(1)
    probs = _without_broken_rows(torch.softmax(logits.float() / temperatures, dim=-1))
    if sampling.top_ks is not None or sampling.top_ps is not None:
        probs = _renormalised(_keep_leading_ranks(probs, sampling))
    elif sampling.min_ps is not None:
        floor = probs.amax(dim=-1, keepdim=True) * sampling.min_ps.unsqueeze(1)
        probs = _renormalised(probs.masked_fill(probs < floor, 0.0))
    greedy = _greedy_rows(sampling)
    if probs.device.type == "cpu" and not greedy.any():  # on a GPU `any` would wait for the device
        return probs
    return _one_hot_where(probs, greedy_tokens(logits=logits), greedy)


def _without_broken_rows(probs: Tensor) -> Tensor:
    """Zero the NaN rows of a softmax; a row with one NaN is NaN everywhere."""
    broken = probs[:, :1].isnan()
    if probs.device.type == "cpu" and not broken.any():  # on a GPU `any` would wait for the device
        return probs
    return probs.masked_fill(broken, 0.0)


def _renormalised(probs: Tensor) -> Tensor:
    # Rows without a distribution stay 0; the others' sums are far above the bound.
    return probs / probs.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(probs.dtype).tiny)


def _greedy_rows(sampling: SamplingRows) -> Tensor:
    cold = sampling.temperatures < GREEDY_BELOW_TEMPERATURE
    return cold if sampling.top_ks is None else cold | (sampling.top_ks <= 1)


def _one_hot_where(probs: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    probs = probs.masked_fill(rows.unsqueeze(1), 0.0)
    here = (rows & (tokens != NO_TOKEN)).unsqueeze(1)
    tokens = tokens.clamp(min=0).unsqueeze(1)
    return probs.scatter_(1, tokens, torch.where(here, 1.0, probs.gather(1, tokens)))


def _keep_leading_ranks(probs: Tensor, sampling: SamplingRows) -> Tensor:
    """Every filter keeps a leading run of the ranks, so a row's kept set is one count of ranks."""
    vocab = probs.shape[-1]
    limit = min(sampling.max_top_k or vocab, vocab)
    if limit <= _LEAD or probs.device.type != "cpu":  # on a GPU finding those that need more would wait
        return _keep_counts(probs, *_kept_ranks(probs, sampling, limit))
    ranked, counts = _kept_ranks(probs, sampling, _LEAD)
    kept = _keep_counts(probs, ranked, counts)
    longer = (counts.squeeze(1) == _LEAD).nonzero().squeeze(1)
    rows = probs[longer]
    kept[longer] = _keep_counts(rows, *_kept_ranks(rows, sampling.take(longer), limit))
    return kept


def _kept_ranks(probs: Tensor, sampling: SamplingRows, limit: int) -> tuple[Tensor, Tensor]:
    """The `limit` largest of each row, falling, and how many of them stay: [rows, limit], [rows, 1]."""
    ranked = (probs.topk(limit) if limit < probs.shape[-1] else probs.sort(descending=True)).values
    kept = torch.ones_like(ranked, dtype=torch.bool)
    if sampling.top_ks is not None:
        kept &= torch.arange(limit, device=probs.device) < sampling.top_ks.unsqueeze(1)
    if sampling.top_ps is not None:
        # top_p 1 keeps all; a rounded sum above 1 must not make a row's tail depend on who else filters in its batch.
        most = sampling.top_ps.masked_fill(sampling.top_ps >= 1, torch.inf).unsqueeze(1)
        kept &= ranked.cumsum(dim=-1) - ranked <= most
    if sampling.min_ps is not None:
        kept &= ranked >= ranked[:, :1] * sampling.min_ps.unsqueeze(1)
    return ranked, kept.sum(dim=-1, keepdim=True)


def _keep_counts(probs: Tensor, ranked: Tensor, counts: Tensor) -> Tensor:
    """Zero all but the `counts` [rows, 1] largest of each row; of tokens tied with the last one, the lowest ids stay.

    By value instead of by sorted index: which of two tied tokens a partial sort returns first depends on its width.
    """
    last = ranked.gather(1, counts - 1)
    above, tied = probs > last, probs == last
    room = counts - above.sum(dim=-1, keepdim=True)
    return probs.masked_fill(~(above | (tied & (tied.cumsum(dim=-1) <= room))), 0.0)
