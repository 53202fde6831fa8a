"""Facts of running requests: tier, promise, weight, end, prompt length.

One entry per request slot of SGLang's pool, written when a prompt is prefilled, read by index in every step. A
promise of 0 is none; it and the weight are those that the request was admitted with.
"""

from typing import Any

import torch
from torch import Tensor

from sparktier.configs.plan_keys import EnginePlan
from sparktier.serving.engine.plan.request_tier import admitted


class SlotTable:
    """Per-slot facts as tensors, indexed by SGLang's `req_pool_indices`."""

    def __init__(self, slots: int, *, device: torch.device) -> None:
        self.tier = torch.zeros(slots, dtype=torch.int64, device=device)
        self.end = torch.zeros(slots, dtype=torch.int64, device=device)
        self.prompt = torch.zeros(slots, dtype=torch.int64, device=device)
        self.promise_tok_s = torch.zeros(slots, dtype=torch.float64, device=device)
        self.weight = torch.ones(slots, dtype=torch.float64, device=device)

    def add_requests(self, requests: list[Any], slots: Tensor, *, plan: EnginePlan) -> None:
        """Record `requests`, SGLang's `Req`s, that are being prefilled under `plan` into `slots` [len(requests)]."""
        facts = []
        for request in requests:
            params = request.sampling_params
            prompt_tokens = len(request.origin_input_ids)
            limit = params.max_new_tokens if params.max_new_tokens is not None else 1 << 30
            facts.append((*admitted(request, plan), prompt_tokens + limit, prompt_tokens))
        # One copy to the device; a double holds every one of these numbers exactly.
        columns = torch.tensor(facts, dtype=torch.float64).t().to(self.tier.device)
        tables = (self.tier, self.promise_tok_s, self.weight, self.end, self.prompt)
        for table, column in zip(tables, columns, strict=True):
            table[slots] = column.to(table.dtype)

    def room(self, slots: Tensor, committed: Tensor) -> Tensor:
        """[batch] int64: tokens each request may still emit, given `committed` [batch] tokens in its KV.

        The anchor is emitted but not in KV yet, hence one less than to the end.
        """
        return self.end[slots] - committed - 1
