"""Penalties and least lengths of requests, with the counts they need, kept on the device from step to step.

SGLang counts nothing under speculation, so penalties would silently have no effect. The tables are made when a rank
starts, before SGLang sizes its cache by what memory is left; work is done for penalised requests alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sparktier.kernels.penalties import Penalties, penalise
from sparktier.serving.engine.requests.least_length import EARLY_STOP


def is_penalised(params: Any) -> bool:
    """Whether SGLang's sampling parameters of a request make its distribution depend on what it has emitted."""
    return bool(
        params.frequency_penalty
        or params.presence_penalty
        or params.repetition_penalty != 1.0
        or params.min_new_tokens > 0
    )


class PenaltyTable:
    """By request slot, of the size that `options.penalty_table_bytes` says; slots without penalties are never read.

    counts [slots, V] int32: tokens emitted. strengths [slots, 3]: frequency, presence, repetition. shortest [slots]:
    least tokens to emit. stops [slots, V] bool: tokens that would end the request.
    """

    def __init__(self, slots: int, *, vocab: int, device: torch.device) -> None:
        # Weak: a request that is aborted while it waits is never said to have ended.
        self._active: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._counts = torch.zeros(slots, vocab, dtype=torch.int32, device=device)
        self._strengths = torch.zeros(slots, 3, device=device)
        self._shortest = torch.zeros(slots, dtype=torch.int64, device=device)
        self._stops = torch.zeros(slots, vocab, dtype=torch.bool, device=device)

    @property
    def slots(self) -> int:
        """How many slots there is room for."""
        return len(self._counts)

    @property
    def idle(self) -> bool:
        """Whether no running request has penalties, so that a step may skip them. Host knowledge, no sync."""
        return not self._active

    def places(self, requests: Sequence[Any]) -> Tensor | None:
        """[p] int64: which of `requests` have penalties; None for none. Host knowledge, no sync."""
        found = [place for place, request in enumerate(requests) if request.rid in self._active]
        return torch.tensor(found, device=self._counts.device) if found else None

    def add_requests(self, requests: Sequence[Any], slots: Sequence[int]) -> None:
        """Take in `requests`, SGLang's `Req`s, that are being prefilled into `slots`."""
        for request, slot in zip(requests, slots, strict=True):
            if is_penalised(request.sampling_params):
                self._active[request.rid] = request
                self._fill(slot, request)

    def remove_request(self, request_id: str) -> None:
        """Forget a request that has ended."""
        self._active.pop(request_id, None)

    def count(self, requests: Sequence[Any], slots: Tensor, tokens: Tensor, valid: Tensor) -> None:
        """Count `tokens` [batch, width] of `requests` in `slots` [batch] where `valid` [batch, width]."""
        places = self.places(requests)
        if places is None:
            return
        flat = slots[places].unsqueeze(1) * self._counts.shape[1] + tokens[places].clamp(min=0)
        self._counts.view(-1).index_add_(0, flat.flatten(), valid[places].to(torch.int32).flatten())

    def seen(self, slots: Tensor) -> Tensor:
        """[p, V] int32, a copy: how often each of `slots` [p] has emitted each token, its anchor included."""
        return self._counts[slots]

    def apply(self, logits: Tensor, *, slots: Tensor, seen: Tensor, emitted: Tensor) -> None:
        """Change `logits` [n, V] of rows that belong to penalised `slots` [n] in place.

        `seen` [n, V]: tokens emitted before each row; `emitted` [n]: how many.
        """
        frequency, presence, repetition = self._strengths[slots].unbind(1)
        penalties = Penalties(frequency=frequency, presence=presence, repetition=repetition)
        penalise(logits=logits, counts=seen, penalties=penalties)
        early = (emitted < self._shortest[slots]).unsqueeze(1)
        logits.add_((early & self._stops[slots]).to(logits.dtype), alpha=EARLY_STOP)

    @contextmanager
    def in_prefill(self, batch: Any) -> Iterator[None]:
        """Let the body, a prefill of SGLang's `batch`, sample first tokens under our counts.

        SGLang's own penalties begin anew with each prefill, so for one that was retracted they forget what it emitted.
        """
        places = self.places(batch.reqs)
        if places is None:
            yield
            return
        stock = batch.sampling_info
        emitted = torch.tensor([len(request.output_ids) for request in batch.reqs], device=places.device)
        ours = _FirstTokens(self, places, batch.req_pool_indices[places], emitted[places])
        batch.sampling_info = replace(
            stock, penalizer_orchestrator=ours, acc_additive_penalties=None, acc_scaling_penalties=None
        )
        try:
            yield
        finally:
            batch.sampling_info = stock

    def _fill(self, slot: int, request: Any) -> None:
        params, device = request.sampling_params, self._counts.device
        emitted = torch.tensor(list(request.output_ids), dtype=torch.int64, device=device)
        self._counts[slot] = torch.bincount(emitted, minlength=self._counts.shape[1]).to(torch.int32)
        strengths = [params.frequency_penalty, params.presence_penalty, params.repetition_penalty]
        self._strengths[slot] = torch.tensor(strengths, device=device)
        self._shortest[slot] = params.min_new_tokens
        self._stops[slot] = False
        self._stops[slot, sorted(_stop_tokens(request))] = True


@dataclass(frozen=True)
class _FirstTokens:
    """What SGLang's sampling takes for its penalizers: ours, at `places` [p] of a batch, those of `slots` [p] with
    `emitted` [p] tokens."""

    table: PenaltyTable
    places: Tensor
    slots: Tensor
    emitted: Tensor
    is_required: bool = True

    def apply(self, logits: Tensor) -> None:
        own = logits[self.places]
        self.table.apply(own, slots=self.slots, seen=self.table.seen(self.slots), emitted=self.emitted)
        logits[self.places] = own


def _stop_tokens(request: Any) -> set[int]:
    """Tokens that end a request; the same set as SGLang's `penaltylib/min_new_tokens.py`."""
    tokenizer = request.tokenizer
    tokens = set(request.sampling_params.stop_token_ids or ()) | set(request.eos_token_ids or ())
    if tokenizer is not None:
        tokens |= set(tokenizer.additional_stop_token_ids or ()) | {tokenizer.eos_token_id}
    return tokens - {None}
