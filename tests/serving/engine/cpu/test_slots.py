"""Slots of a CPU's KV table, read and written by spans: against a loop over requests."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparktier.serving.engine.cpu.torch_ops import window_slots, write_slots

REQUESTS, LENGTH = 5, 12
SPANS = st.lists(st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted), min_size=1, max_size=REQUESTS)


def offsets(spans: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    # As SGLang gives them: one may be a tensor of the batch, the other of its planner.
    starts, ends = zip(*spans, strict=True)
    return torch.tensor(starts, dtype=torch.int32), torch.tensor(ends)


@given(SPANS, st.permutations(range(REQUESTS)))
def test_a_window_is_every_request_s_own_span(spans: list[list[int]], order: list[int]) -> None:
    table = torch.randperm(REQUESTS * LENGTH).view(REQUESTS, LENGTH).to(torch.int32)
    requests = torch.tensor(order[: len(spans)])
    start, end = offsets(spans)
    found = window_slots(req_pool_indices=requests, req_to_token=table, start_offset=start, end_offset=end)
    wanted = [table[request, first:last] for request, (first, last) in zip(order, spans, strict=False)]
    assert found.dtype == torch.int64
    assert found.tolist() == torch.cat(wanted).tolist()


@given(SPANS, st.permutations(range(REQUESTS)))
def test_writing_fills_the_spans_and_nothing_else(spans: list[list[int]], order: list[int]) -> None:
    table, wanted = torch.zeros(REQUESTS, LENGTH, dtype=torch.int32), torch.zeros(REQUESTS, LENGTH, dtype=torch.int32)
    # More slots than are asked for, as when whole pages are taken.
    slots = torch.arange(1, REQUESTS * LENGTH + 3)
    place = 0
    for request, (first, last) in zip(order, spans, strict=False):
        wanted[request, first:last] = slots[place : place + last - first]
        place += last - first
    start, end = offsets(spans)
    write_slots(torch.tensor(order[: len(spans)]), table, start, end, slots, len(spans))
    assert torch.equal(table, wanted)
