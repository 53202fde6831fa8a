"""Facts of running requests on the device: tier, end, prompt length.

One entry per request slot of SGLang's pool, written when a prompt is prefilled, read by index in every step.
"""

from typing import Any

import torch
from torch import Tensor

from sparktier.serving.engine.rank_options import Tiers


class SlotTable:
    """Per-slot facts as tensors, indexed by SGLang's `req_pool_indices`."""

    def __init__(self, slots: int, *, tiers: Tiers, device: torch.device) -> None:
        self._tiers = tiers
        self.tier = torch.zeros(slots, dtype=torch.int64, device=device)
        self.end = torch.zeros(slots, dtype=torch.int64, device=device)
        self.prompt = torch.zeros(slots, dtype=torch.int64, device=device)

    def add_requests(self, requests: list[Any], slots: Tensor) -> None:
        """Record `requests`, SGLang's `Req`s, that are being prefilled into `slots` [len(requests)]."""
        facts = []
        for request in requests:
            params = request.sampling_params
            prompt_tokens = len(request.origin_input_ids)
            limit = params.max_new_tokens if params.max_new_tokens is not None else 1 << 30
            facts.append((self._tiers.of(params.custom_params), prompt_tokens + limit, prompt_tokens))
        columns = torch.tensor(facts, dtype=torch.int64).t().to(self.tier.device)
        for table, column in zip((self.tier, self.end, self.prompt), columns, strict=True):
            table[slots] = column

    def room(self, slots: Tensor, committed: Tensor) -> Tensor:
        """[batch] int64: tokens each request may still emit, given `committed` [batch] tokens in its KV.

        The anchor is emitted but not in KV yet, hence one less than to the end.
        """
        return self.end[slots] - committed - 1
