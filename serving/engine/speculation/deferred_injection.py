"""The target's features of accepted rows on their way into the draft's KV: at once, or some steps later.

Only a draft forward reads them. Steps that draft nothing defer theirs, as projecting several rows at once costs little
more than one: most of the cost is reading the projection's weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparktier.kernels.verify.commit import Commit
from sparktier.serving.engine.speculation.verify_pass import Verified

# Bounds the memory, and how long the one step takes that writes it all.
MOST_STEPS = 16

# hidden [n, features], slots [n], positions [n]
Inject = Callable[[Tensor, Tensor, Tensor], None]


class DeferredFeatures:
    """One row a request and step, in the order of the steps."""

    def __init__(self, inject: Inject) -> None:
        self._inject = inject
        self._requests: list[Any] = []
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def defer(self, requests: Sequence[Any], hidden: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Take one row of each request; tensors as `Inject` has them, which the caller may not write to afterwards."""
        # Slots of a request that has left may be another's by now, and one flush must write a slot only once.
        if requests != self._requests:
            self.flush()
            self._requests = list(requests)
        self._steps.append((hidden, slots, positions))
        if len(self._steps) == MOST_STEPS:
            self.flush()

    def flush(self) -> None:
        """Write all deferred features; due before a draft forward and before a prefill takes a slot."""
        if self._steps:
            hidden, slots, positions = (torch.cat(column) for column in zip(*self._steps, strict=True))
            self._requests, self._steps = [], []
            self._inject(hidden, slots, positions)


class FeatureInjection:
    """Feeds the draft through `injector`, SGLang's `TargetHiddenKvInjector`."""

    def __init__(self, injector: Any) -> None:
        self._injector = injector
        self._deferred = DeferredFeatures(self._write)

    def flush(self) -> None:
        """Write all deferred features; due before a draft forward and before a prefill takes a slot."""
        self._deferred.flush()

    def inject(self, batch: Any, window: Any, verified: Verified, committed: Commit) -> None:
        """Write the features of accepted rows, whose KV is at the front of `window`; where nothing was drafted, defer.

        Args:
            batch: SGLang's, whose requests own the rows.
            window: SGLang's KV slots and positions of the step.
            verified: the pass that made the features.
            committed: of that pass.
        """
        levels = committed.places.shape[1]
        slots = self._injector.ids_for(window.kv_loc_plan).view(len(committed.places), -1)[:, :levels]
        hidden = verified.hidden[committed.places.flatten()]
        if levels == 1:
            # The window's tensors may be written again by the next step.
            self._deferred.defer(batch.reqs, hidden, slots[:, 0].clone(), committed.positions[:, 0])
            return
        slots = slots.contiguous()
        self._injector.inject_target_hidden(
            target_hidden=hidden,
            cache_loc=slots.flatten(),
            cache_loc_2d=slots,
            positions=committed.positions.flatten(),
            commit_lens=committed.lengths,
        )

    def _write(self, hidden: Tensor, slots: Tensor, positions: Tensor) -> None:
        self._injector.inject_target_hidden(target_hidden=hidden, cache_loc=slots, positions=positions)
