"""Features of steps that drafted nothing, held back and put into the draft's KV several steps at a time.

Nobody reads them until something is drafted, and projecting several rows at once costs little more than one: most of it
is reading the projection's weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Bounds what is held and how long the one step takes that puts it all away.
MOST_STEPS = 16

# hidden [n, features], slots [n], positions [n]
Inject = Callable[[Tensor, Tensor, Tensor], None]


class HeldFeatures:
    """One row a request and step, in the order of the steps."""

    def __init__(self, inject: Inject) -> None:
        self._inject = inject
        self._requests: list[Any] = []
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def hold(self, requests: Sequence[Any], hidden: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Take one row of each request; tensors as `Inject` has them, which the caller may not write to afterwards."""
        # Slots of a request that has left may be another's by now, and a slot is written only once in a release.
        if requests != self._requests:
            self.release()
            self._requests = list(requests)
        self._steps.append((hidden, slots, positions))
        if len(self._steps) == MOST_STEPS:
            self.release()

    def release(self) -> None:
        """Put away all that is held; due before anything reads the draft's KV or takes a slot for another request."""
        if self._steps:
            hidden, slots, positions = (torch.cat(column) for column in zip(*self._steps, strict=True))
            self._requests, self._steps = [], []
            self._inject(hidden, slots, positions)
