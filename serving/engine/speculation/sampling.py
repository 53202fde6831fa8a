"""The target's own choice of tokens, with noise keyed by (seed, position): in prompts and in verify rows alike.

One rule for every rung, so that a sampled answer is the same whatever was drafted. Knows nothing of drafts.
"""

from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler
from torch import Tensor

from sparktier.kernels.noise import draw
from sparktier.kernels.target_probs import SamplingRows, greedy_tokens, target_probs
from sparktier.serving.engine.speculation.slots import seed_of


class KeyedSampler(Sampler):
    """SGLang's sampler with the draw itself replaced by ours, for the token that a prefill yields."""

    def _sample_from_probs(
        self, probs: Tensor, sampling_info: Any, positions: Tensor, simple_sampling_case: bool
    ) -> tuple[Tensor, None]:
        # The probabilities come after temperature; their logarithm at temperature 1 gives them back.
        rows = sampling_rows(sampling_info, repeat=1, temperatures=torch.ones(len(probs), device=probs.device))
        law = target_probs(logits=probs.log(), sampling=rows)
        return draw(weights=law, seeds=sampling_info.sampling_seed, positions=positions.long()), None


def sampling_rows(info: Any, *, repeat: int, temperatures: Tensor | None = None) -> SamplingRows:
    """Return SGLang's per-request sampling parameters for `repeat` rows of each request."""

    def rows(values: Tensor) -> Tensor:
        return values.reshape(-1).repeat_interleave(repeat)

    return SamplingRows(
        temperatures=rows(info.temperatures if temperatures is None else temperatures),
        top_ks=rows(info.top_ks) if info.need_top_k_sampling or info.is_any_greedy else None,
        top_ps=rows(info.top_ps) if info.need_top_p_sampling else None,
        min_ps=rows(info.min_ps) if info.need_min_p_sampling else None,
        max_top_k=info.max_top_k,
    )


def choose(logits: Tensor, info: Any, *, positions: Tensor) -> Tensor:
    """The target's token in each verify row: logits [batch * width, V], positions [batch, width] -> [batch, width]."""
    if info.is_all_greedy:
        return greedy_tokens(logits=logits).view(positions.shape)
    width = positions.shape[1]
    law = target_probs(logits=logits, sampling=sampling_rows(info, repeat=width))
    seeds = info.sampling_seed.repeat_interleave(width)
    return draw(weights=law, seeds=seeds, positions=positions.flatten()).view(positions.shape)


def seeds_of(requests: list[Any], *, device: torch.device) -> Tensor:
    """[batch] int64: the seed of each of SGLang's `Req`s."""
    seeds = [seed_of(request.rid, request.sampling_params.sampling_seed) for request in requests]
    return torch.tensor(seeds, dtype=torch.int64).to(device)
