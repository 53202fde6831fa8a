"""Gives every request a seed that all ranks agree on, in engines that sample with keyed noise.

Without it SGLang ignores a request's own seed. SGLang keeps the tensor of seeds in step with the batch afterwards.
"""

from typing import Any


def install() -> None:
    """Register the keyed sampler, and hook the construction of SGLang's sampling parameters in this process."""
    from sglang.srt.layers.sampler import register_sampler_backend
    from sglang.srt.runtime_context import get_exec
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    from sparktier.serving.engine.rank_options import KEYED_SAMPLER, rank_options
    from sparktier.serving.engine.sampling.keyed_sampler import KeyedSampler, seeds_of

    register_sampler_backend(KEYED_SAMPLER, KeyedSampler)
    drafting = rank_options().ladder is not None
    stock = SamplingBatchInfo.from_schedule_batch.__func__

    def from_schedule_batch(cls: type, batch: Any, vocab_size: int) -> Any:
        info = stock(cls, batch, vocab_size)
        keyed = get_exec().kernel.sampling_backend == KEYED_SAMPLER
        if keyed or drafting:
            info.sampling_seed = seeds_of(batch.reqs, device=batch.device)
        return info

    SamplingBatchInfo.from_schedule_batch = classmethod(from_schedule_batch)
