"""Features deferred while nothing is drafted: all arrive, in order, before a slot changes hands."""

import torch
from torch import Tensor

from sparktier.serving.engine.speculation.deferred_injection import MOST_STEPS, DeferredFeatures

Written = list[tuple[Tensor, Tensor, Tensor]]


def deferring(written: Written) -> DeferredFeatures:
    return DeferredFeatures(lambda *columns: written.append(columns))


def step(deferred: DeferredFeatures, requests: list[str], number: int) -> None:
    rows = len(requests)
    deferred.defer(requests, torch.full((rows, 3), float(number)), torch.arange(rows) + 10 * number, torch.arange(rows))


def test_rows_arrive_in_the_order_of_their_steps() -> None:
    written: Written = []
    deferred = deferring(written)
    for number in range(3):
        step(deferred, ["a", "b"], number)
    assert not written
    deferred.flush()
    [(hidden, slots, positions)] = written
    assert slots.tolist() == [0, 1, 10, 11, 20, 21]
    assert positions.tolist() == [0, 1] * 3
    assert hidden[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    deferred.flush()
    assert len(written) == 1, "nothing is written twice"


def test_no_more_steps_are_deferred_than_promised() -> None:
    written: Written = []
    deferred = deferring(written)
    for number in range(2 * MOST_STEPS + 1):
        step(deferred, ["a"], number)
    assert [len(slots) for _, slots, _ in written] == [MOST_STEPS] * 2


def test_rows_are_written_before_another_request_may_have_their_slots() -> None:
    written: Written = []
    deferred = deferring(written)
    step(deferred, ["a", "b"], 0)
    step(deferred, ["b"], 1)
    assert [slots.tolist() for _, slots, _ in written] == [[0, 1]]
    step(deferred, ["b"], 2)
    assert len(written) == 1, "the same requests go on being deferred"
