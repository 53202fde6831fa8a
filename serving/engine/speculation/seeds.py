"""Gives every request of a speculating engine a sampling seed that all ranks agree on.

Knows nothing of how the seed is used. SGLang keeps the tensor in step with the batch from then on.
"""

from typing import Any


def install() -> None:
    """Hook the making of SGLang's sampling parameters in this process."""
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    from sparktier.serving.engine.speculation.algorithm import SparktierAlgorithm
    from sparktier.serving.engine.speculation.sampling import seeds_of

    stock = SamplingBatchInfo.from_schedule_batch.__func__

    def from_schedule_batch(cls: type, batch: Any, vocab_size: int) -> Any:
        info = stock(cls, batch, vocab_size)
        if isinstance(batch.spec_algorithm, SparktierAlgorithm):
            info.sampling_seed = seeds_of(batch.reqs, device=batch.device)
        return info

    SamplingBatchInfo.from_schedule_batch = classmethod(from_schedule_batch)
