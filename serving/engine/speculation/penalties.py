"""Penalties and least lengths of requests, with the counts they need, kept on the device from step to step.

SGLang counts nothing under speculation, so penalties would silently have no effect. Rows are made for slots that need
them and kept for the slot's next such request. Knows nothing of drafting.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sparktier.kernels.penalties import Penalties, penalise
from sparktier.serving.engine.least_length import EARLY_STOP


def is_penalised(params: Any) -> bool:
    """Whether SGLang's sampling parameters of a request make its law depend on what it has emitted."""
    return bool(
        params.frequency_penalty
        or params.presence_penalty
        or params.repetition_penalty != 1.0
        or params.min_new_tokens > 0
    )


class PenaltyTable:
    """By request slot; row 0 is neutral and belongs to all slots without penalties.

    counts [rows, V] int32: tokens emitted. strengths [rows, 3]: frequency, presence, repetition. shortest [rows]: least
    tokens to emit. stops [rows, V] bool: tokens that would end the request.
    """

    def __init__(self, slots: int, *, vocab: int, device: torch.device) -> None:
        self._row = torch.zeros(slots, dtype=torch.int64, device=device)
        self._rows_by_slot: dict[int, int] = {}
        # Weak: a request that is aborted while it waits is never said to have ended.
        self._active: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._counts = torch.zeros(1, vocab, dtype=torch.int32, device=device)
        self._strengths = torch.tensor([[0.0, 0.0, 1.0]], device=device)
        self._shortest = torch.zeros(1, dtype=torch.int64, device=device)
        self._stops = torch.zeros(1, vocab, dtype=torch.bool, device=device)

    @property
    def idle(self) -> bool:
        """Whether no running request has penalties, so that a step may skip them. Host knowledge, no sync."""
        return not self._active

    def enter(self, requests: list[Any], slots: list[int]) -> None:
        """Take in `requests`, SGLang's `Req`s, that are being prefilled into `slots`."""
        for request, slot in zip(requests, slots, strict=True):
            self._row[slot] = 0
            if is_penalised(request.sampling_params):
                self._active[request.rid] = request
                self._fill(self._claim(slot), request)

    def leave(self, request_id: str) -> None:
        """Forget a request that has ended."""
        self._active.pop(request_id, None)

    def add(self, slots: Tensor, tokens: Tensor, valid: Tensor) -> None:
        """Count `tokens` [batch, width] of `slots` [batch] where `valid` [batch, width]."""
        rows = self._row[slots]
        kept = (valid & (rows > 0).unsqueeze(1)).to(torch.int32)
        flat = rows.unsqueeze(1) * self._counts.shape[1] + tokens.clamp(min=0)
        self._counts.view(-1).index_add_(0, flat.flatten(), kept.flatten())

    def seen(self, slots: Tensor) -> Tensor:
        """[batch, V] int32, a copy: how often each of `slots` [batch] has emitted each token, its anchor included."""
        return self._counts[self._row[slots]]

    def apply(self, logits: Tensor, *, slots: Tensor, seen: Tensor, emitted: Tensor) -> None:
        """Change `logits` [n, V] of rows that belong to `slots` [n] in place.

        `seen` [n, V]: tokens emitted before each row; `emitted` [n]: how many.
        """
        rows = self._row[slots]
        frequency, presence, repetition = self._strengths[rows].unbind(1)
        penalties = Penalties(frequency=frequency, presence=presence, repetition=repetition)
        penalise(logits=logits, counts=seen, penalties=penalties)
        early = (emitted < self._shortest[rows]).unsqueeze(1)
        logits.add_((early & self._stops[rows]).to(logits.dtype), alpha=EARLY_STOP)

    @contextmanager
    def in_prefill(self, batch: Any) -> Iterator[None]:
        """Let the body, a prefill of SGLang's `batch`, sample first tokens under our counts.

        SGLang's own penalties begin anew with each prefill, so for one that was retracted they forget what it emitted.
        """
        if self.idle:
            yield
            return
        stock = batch.sampling_info
        emitted = torch.tensor([len(request.output_ids) for request in batch.reqs], device=self._row.device)
        ours = _FirstTokens(self, batch.req_pool_indices, emitted)
        batch.sampling_info = replace(
            stock, penalizer_orchestrator=ours, acc_additive_penalties=None, acc_scaling_penalties=None
        )
        try:
            yield
        finally:
            batch.sampling_info = stock

    def _claim(self, slot: int) -> int:
        row = self._rows_by_slot.setdefault(slot, len(self._rows_by_slot) + 1)
        if row == len(self._counts):
            for name in ("_counts", "_strengths", "_shortest", "_stops"):
                table = getattr(self, name)
                setattr(self, name, torch.cat([table, torch.zeros_like(table)]))
        self._row[slot] = row
        return row

    def _fill(self, row: int, request: Any) -> None:
        params, device = request.sampling_params, self._counts.device
        emitted = torch.tensor(list(request.output_ids), dtype=torch.int64, device=device)
        self._counts[row] = torch.bincount(emitted, minlength=self._counts.shape[1]).to(torch.int32)
        strengths = [params.frequency_penalty, params.presence_penalty, params.repetition_penalty]
        self._strengths[row] = torch.tensor(strengths, device=device)
        self._shortest[row] = params.min_new_tokens
        self._stops[row] = False
        self._stops[row, sorted(_stop_tokens(request))] = True


@dataclass(frozen=True)
class _FirstTokens:
    """What SGLang's sampling takes for its penalizers: ours of `slots` [batch], with `emitted` [batch] tokens."""

    table: PenaltyTable
    slots: Tensor
    emitted: Tensor
    is_required: bool = True

    def apply(self, logits: Tensor) -> None:
        seen = self.table.seen(self.slots)
        self.table.apply(logits, slots=self.slots, seen=seen, emitted=self.emitted)


def _stop_tokens(request: Any) -> set[int]:
    """Tokens that end a request; the same set as SGLang's `penaltylib/min_new_tokens.py`."""
    tokenizer = request.tokenizer
    tokens = set(request.sampling_params.stop_token_ids or ()) | set(request.eos_token_ids or ())
    if tokenizer is not None:
        tokens |= set(tokenizer.additional_stop_token_ids or ()) | {tokenizer.eos_token_id}
    return tokens - {None}
