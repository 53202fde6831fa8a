"""Gives each of a request's `n` choices its own seed; SGLang gives all the same one, so their answers would be equal.

The first choice keeps the request's seed, so its answer is that of a request with `n` = 1.
"""

import copy
from typing import Any

# A send that fails leaves its count behind; such counts must not pile up.
_MOST_OPEN = 4096
_STRIDE = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: consecutive indices give distant seeds
_SEED_BITS = 63


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of choice `index` of a request with `seed`."""
    return seed if index == 0 else (seed + index * _STRIDE) % (1 << _SEED_BITS)


class ChoiceSeeds:
    """Counts which choice of a request is sent next; the choices of one request share one `SamplingParams`."""

    def __init__(self) -> None:
        # Holds the parameters too, so that no other object gets their id meanwhile.
        self._sent: dict[int, tuple[Any, int]] = {}

    def next_params(self, params: Any) -> Any:
        """Return SGLang's `SamplingParams` with the seed of the next choice, or `params` where none is needed."""
        # The request that warms the prefix cache for all choices yields no token and is not a choice.
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
    """Seed the choices that `tokenizer_manager` sends to the ranks."""
    send, seeds = tokenizer_manager._send_one_request, ChoiceSeeds()

    async def send_one_request(request: Any) -> None:
        if hasattr(request, "sampling_params"):
            request.sampling_params = seeds.next_params(request.sampling_params)
        await send(request)

    tokenizer_manager._send_one_request = send_one_request
