"""Prompt lookup on one rank: the tokens of every running request, what was drafted from them, what came of it.

All of it is on the target's device, so a GPU's host neither waits for tokens nor copies any but prompts. Ranks of a
replica commit the same tokens, from which alone follows what is here: it is the same on each of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.utils.common import async_h2d
from torch import Tensor

from sparktier.kernels.expand import Candidates
from sparktier.kernels.lookup.counting import ALONE, cells, count, no_counts
from sparktier.kernels.lookup.joining import Joined, alone, better_chain, join
from sparktier.kernels.lookup.matching import Lookup, look_up


class PromptLookup:
    """Contexts by request slot, up to `context_tokens` of each; drafts of up to `tokens`, of ids below `vocabulary`."""

    def __init__(self, slots: int, *, context_tokens: int, tokens: int, vocabulary: int, device: torch.device) -> None:
        # One slot more than there are, for rows of a graph that hold no request.
        self.no_slot = slots
        self.tokens = tokens
        self.counts = no_counts(device)
        self._vocabulary = vocabulary
        # The last steps of a request may run past its end.
        width = context_tokens + 2 * (tokens + 1)
        self._history = torch.zeros(slots + 1, width, dtype=torch.int32, device=device)
        self._noted_at = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._drafts = torch.zeros(slots + 1, tokens, dtype=torch.int64, device=device)
        self._cells = torch.zeros_like(self._drafts)

    def add_requests(self, requests: Sequence[Any], slots: Sequence[int]) -> None:
        """Take the contexts of SGLang's `requests` that are being prefilled into `slots`, whatever was there before."""
        device = self._history.device
        self._noted_at.index_fill_(0, async_h2d(list(slots), dtype=torch.int64, device=device), 0)
        for request, slot in zip(requests, slots, strict=True):
            tokens = torch.tensor([*request.origin_input_ids, *request.output_ids], dtype=torch.int32)
            pinned = tokens.pin_memory() if device.type == "cuda" else tokens
            self._history[slot, : len(tokens)].copy_(pinned, non_blocking=True)

    def add_tokens(self, slots: Tensor, lengths: Tensor, tokens: Tensor) -> None:
        """Put `tokens` [batch, n] behind the first `lengths` [batch] of each slot [batch].

        Places behind the tokens of a request hold anything, and are overwritten once there are more.
        """
        places = lengths.unsqueeze(1) + torch.arange(tokens.shape[1], device=tokens.device)
        last = self._history.shape[1] - 1
        self._history[slots.unsqueeze(1), places.clamp(max=last)] = tokens.clamp(min=0).int()

    def join(
        self, candidates: Candidates, slots: Tensor, lengths: Tensor, *, tokens: int, most_rows: Tensor | None = None
    ) -> Candidates:
        """Add up to `tokens` drafts of each request to those of a drafter.

        Args:
            candidates: of the drafter; a chain of `tokens` where nothing may branch.
            slots, lengths: [batch] int64 of each request; the anchor counts as one of its tokens.
            tokens: at most those of the lookup.
            most_rows: [batch] int64 rows of each request where nothing may branch: the better chain of those is taken.
        """
        found = self._look_up(slots, lengths)
        given: Any = {"candidates": candidates, "lookup": found.first(tokens), "counts": self.counts}
        joined = join(**given) if most_rows is None else better_chain(**given, most_rows=most_rows)
        return self._noted(joined, found, slots, lengths)

    def alone(self, anchors: Tensor, slots: Tensor, lengths: Tensor, *, tokens: int) -> Candidates:
        """Return a chain of up to `tokens` drafts of each request, without a drafter; arguments as for `join`."""
        found = self._look_up(slots, lengths)
        return self._noted(
            alone(anchors=anchors, lookup=found.first(tokens), counts=self.counts), found, slots, lengths
        )

    def _look_up(self, slots: Tensor, lengths: Tensor) -> Lookup:
        """Count what became of the drafts before these, and look for new ones."""
        history, noted_at = self._history[slots], self._noted_at[slots]
        places = noted_at.unsqueeze(1) + torch.arange(self.tokens, device=slots.device)
        count(
            counts=self.counts,
            cells=self._cells[slots],
            drafts=self._drafts[slots],
            emitted=history.gather(1, places.clamp(max=history.shape[1] - 1)),
            known=torch.where(noted_at > 0, lengths - noted_at, 0),
        )
        # A GPU isn't asked how long the longest is.
        width = int(lengths.max()) if lengths.device.type == "cpu" else history.shape[1]
        return look_up(history=history[:, :width], lengths=lengths, tokens=self.tokens, vocabulary=self._vocabulary)

    def _noted(self, joined: Joined, found: Lookup, slots: Tensor, lengths: Tensor) -> Candidates:
        """Note all drafts that were found, whether they will be verified or not."""
        kinds = torch.nn.functional.pad(joined.kinds, (0, self.tokens - joined.kinds.shape[1]), value=ALONE)
        self._noted_at[slots] = lengths
        self._drafts[slots] = found.tokens
        self._cells[slots] = cells(lookup=found, kinds=kinds)
        return joined.candidates
