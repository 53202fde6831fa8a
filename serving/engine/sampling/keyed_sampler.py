"""Samples the token after a prefill with noise keyed by (seed, position).

Verify rows are sampled by the same rule (target_distribution.py), so a sampled answer does not depend on the drafts.
"""

from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler
from torch import Tensor

from sparktier.kernels.noise import draw
from sparktier.kernels.target_probs import SamplingRows, target_probs
from sparktier.serving.engine.sampling.seeds import seed_of


class KeyedSampler(Sampler):
    """SGLang's sampler with our draw."""

    def _sample_from_probs(
        self, probs: Tensor, sampling_info: Any, positions: Tensor, simple_sampling_case: bool
    ) -> tuple[Tensor, None]:
        # `probs` include the temperature already, so their logarithm is used at temperature 1.
        rows = sampling_rows(sampling_info, temperatures=torch.ones(len(probs), device=probs.device))
        distribution = target_probs(logits=probs.log(), sampling=rows)
        return draw(weights=distribution, seeds=sampling_info.sampling_seed, positions=positions.long()), None


def sampling_rows(info: Any, *, temperatures: Tensor | None = None) -> SamplingRows:
    """Return SGLang's sampling parameters of a batch, one per request."""
    return SamplingRows(
        temperatures=(info.temperatures if temperatures is None else temperatures).reshape(-1),
        top_ks=info.top_ks.reshape(-1) if info.need_top_k_sampling or info.is_any_greedy else None,
        top_ps=info.top_ps.reshape(-1) if info.need_top_p_sampling else None,
        min_ps=info.min_ps.reshape(-1) if info.need_min_p_sampling else None,
        max_top_k=info.max_top_k,
    )


def seeds_of(requests: list[Any], *, device: torch.device) -> Tensor:
    """[batch] int64: the seed of each of SGLang's `Req`s."""
    seeds = [seed_of(request.rid, request.sampling_params.sampling_seed) for request in requests]
    return torch.tensor(seeds, dtype=torch.int64).to(device)
