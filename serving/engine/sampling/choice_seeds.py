"""A seed of its own for each of a request's `n` choices: SGLang gives all the same, so their answers would be equal.

The first keeps the request's seed, so it says what it would say alone.
"""

import copy
from typing import Any

# Choices that a broken send left uncounted must not pile up.
_MOST_OPEN = 4096
_STRIDE = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: neighbours land far apart
_SEED_BITS = 63


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of choice `index` of a request with `seed`."""
    return seed if index == 0 else (seed + index * _STRIDE) % (1 << _SEED_BITS)


class ChoiceSeeds:
    """Counts which choice of its request is being sent; choices of one request share their sampling parameters."""

    def __init__(self) -> None:
        # The parameters are kept beside the count, so that no other object can take their identity meanwhile.
        self._sent: dict[int, tuple[Any, int]] = {}

    def next_params(self, params: Any) -> Any:
        """Return SGLang's `SamplingParams` with the seed of the next choice; what needs none comes back as it is."""
        # The request that warms the cache for all choices yields nothing, and is none of them.
        if params.sampling_seed is None or params.n <= 1 or params.max_new_tokens == 0 or params.beam_width:
            return params
        _, index = self._sent.pop(id(params), (params, 0))
        if index + 1 < params.n:
            self._sent[id(params)] = (params, index + 1)
            while len(self._sent) > _MOST_OPEN:
                self._sent.pop(next(iter(self._sent)))
        seeded = copy.copy(params)
        seeded.sampling_seed = choice_seed(params.sampling_seed, index)
        return seeded


def install(tokenizer_manager: Any) -> None:
    """Give choices their seeds where `tokenizer_manager` sends them to the ranks."""
    send, seeds = tokenizer_manager._send_one_request, ChoiceSeeds()

    async def send_one_request(request: Any) -> None:
        if hasattr(request, "sampling_params"):
            request.sampling_params = seeds.next_params(request.sampling_params)
        await send(request)

    tokenizer_manager._send_one_request = send_one_request
