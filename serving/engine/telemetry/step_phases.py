"""Times the parts of one decode step: draft, verify, and the write of features into the draft's KV.

On a GPU the marks are events on its stream. They are read once the step's results are on the host, so measuring adds no
sync.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class Phases:
    """The parts of one step, in the order they ran; construct it at the start of the step.

    `requests` are SGLang's requests in the step, known once its results are on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = device.type != "cpu"
        self._device = device
        self._marks: list[tuple[str, Any, Any]] = []
        self.requests: Sequence[Any] = ()
        self.started_ns = time.time_ns()
        self._start = self._now()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time the body as the part `name`."""
        begun = self._now()
        yield
        self._marks.append((name, begun, self._now()))

    def spans_ms(self) -> dict[str, tuple[float, float]]:
        """Return start and end of each part in ms since the step's start; call it after the step's results are read."""
        return {name: (self._since(begun), self._since(ended)) for name, begun, ended in self._marks}

    def durations_ms(self) -> dict[str, float]:
        """Return the duration of each part; call it when `spans_ms` may be called."""
        return {name: ended - begun for name, (begun, ended) in self.spans_ms().items()}

    def _now(self) -> Any:
        if not self._events:
            return time.perf_counter()
        event = torch.Event(device=self._device, enable_timing=True)
        event.record()
        return event

    def _since(self, mark: Any) -> float:
        if self._events:
            return float(self._start.elapsed_time(mark))
        return float((mark - self._start) * 1000.0)
