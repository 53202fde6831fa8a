"""Target features made while the trainer runs, without a cache: one producer thread, a bounded queue, one consumer.

The bound is the backpressure: the producer (an engine's prefill) waits while `in_flight` records are unread.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.features import FeatureSource, FeatureSpec, checked_record, record_tensors
from sparktier.drafter.data.packing import FeatureRecord

Produce = Callable[[Iterator[int]], Iterator[FeatureRecord]]
# A producer that waits for room checks this often whether its reader is gone.
POLL_S = 0.1


@dataclass(frozen=True)
class _Failure:
    error: BaseException


_Ready = queue.Queue[FeatureRecord | _Failure]


class FeatureStream:
    """A `FeatureSource` over a producer that yields the requested sequences in order."""

    def __init__(self, spec: FeatureSpec, lengths_tokens: Sequence[int], produce: Produce, in_flight: int) -> None:
        self.spec = spec
        self.lengths_tokens = lengths_tokens
        self._produce = produce
        self._in_flight = in_flight

    def read(self, order: Sequence[int]) -> Iterator[FeatureRecord]:
        """Yield sequences in `order`; an error of the producer is raised here, at the record that failed."""
        ready: _Ready = queue.Queue(self._in_flight)
        closed = threading.Event()
        worker = threading.Thread(target=self._work, args=(order, ready, closed), daemon=True)
        worker.start()
        try:
            for index in order:
                item = ready.get()
                if isinstance(item, _Failure):
                    raise item.error
                yield self._checked(item, index)
        finally:
            closed.set()
            worker.join()

    def _work(self, order: Sequence[int], ready: _Ready, closed: threading.Event) -> None:
        try:
            for record in self._produce(iter(order)):
                if not _offer(ready, record, closed):
                    return
            error: BaseException = ArtifactError("feature stream: the producer ended before all sequences. Restart it.")
        # Whatever broke the producer, an interrupt included, must reach the trainer and not die with this thread.
        except BaseException as broken:
            error = broken
        _offer(ready, _Failure(error), closed)

    def _checked(self, record: FeatureRecord, index: int) -> FeatureRecord:
        tensors = record_tensors(record, self.spec)
        return checked_record(tensors, self.spec, self.lengths_tokens[index], f"streamed sequence {index}")


def prefetched(source: FeatureSource, in_flight: int = 16) -> FeatureStream:
    """Return a source on disk as one that is read ahead of the trainer, `in_flight` records at most."""

    def produce(order: Iterator[int]) -> Iterator[FeatureRecord]:
        for index in order:
            yield from source.read([index])

    return FeatureStream(source.spec, source.lengths_tokens, produce, in_flight)


def _offer(ready: _Ready, item: "FeatureRecord | _Failure", closed: threading.Event) -> bool:
    while not closed.is_set():
        try:
            ready.put(item, timeout=POLL_S)
        except queue.Full:
            continue
        return True
    return False
