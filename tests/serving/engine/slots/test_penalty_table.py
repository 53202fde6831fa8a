"""The penalty table follows requests through slots: counts, neutral neighbours, reuse of a slot, least lengths."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from sparktier.kernels.draft_tree import anchors_alone
from sparktier.serving.engine.rank_options import penalty_table_bytes
from sparktier.serving.engine.requests.least_length import EARLY_STOP
from sparktier.serving.engine.slots.penalty_table import PenaltyTable
from sparktier.serving.engine.speculation.target_distribution import TargetDistribution

VOCAB = 6


class Request(SimpleNamespace):
    """In the place of SGLang's `Req`; unlike its base it can be referred to weakly."""


def request(rid: str, *, emitted: tuple[int, ...] = (), stops: tuple[int, ...] = (), **params: float) -> Any:
    neutral = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_new_tokens": 0}
    sampling = SimpleNamespace(**{**neutral, **params}, stop_token_ids=list(stops))
    return Request(rid=rid, sampling_params=sampling, output_ids=list(emitted), eos_token_ids=None, tokenizer=None)


def table() -> PenaltyTable:
    return PenaltyTable(8, vocab=VOCAB, device=torch.device("cpu"))


def penalised(table: PenaltyTable, slots: list[int], emitted: list[int]) -> torch.Tensor:
    logits, rows = torch.zeros(len(slots), VOCAB), torch.tensor(slots)
    table.apply(logits, slots=rows, seen=table.seen(rows), emitted=torch.tensor(emitted))
    return logits


def test_counts_follow_the_slot_and_neighbours_stay_free() -> None:
    counts = table()
    running = [request("a", frequency_penalty=1.0, emitted=(2,)), request("b")]
    counts.add_requests(running, [5, 6])
    tokens = torch.tensor([[2, 3, -1], [2, 2, 2]])
    counts.count(running, torch.tensor([5, 6]), tokens, tokens >= 0)
    assert counts.places(running) is not None
    assert counts.places(running).tolist() == [0]  # type: ignore[union-attr]
    assert penalised(counts, [5], [0]).tolist() == [[0.0, 0.0, -2.0, -1.0, 0.0, 0.0]]
    assert counts.seen(torch.tensor([6])).sum() == 0


def test_the_tables_never_grow_and_are_as_large_as_is_planned() -> None:
    """Whatever comes later, a rank has what it reserved when it started."""
    counts = table()

    def held() -> list[torch.Tensor]:
        return [value for value in vars(counts).values() if isinstance(value, torch.Tensor)]

    before = [tensor.data_ptr() for tensor in held()]
    by_vocabulary = sum(tensor.nbytes for tensor in held() if tensor.shape[-1] == VOCAB)
    assert by_vocabulary == penalty_table_bytes(slots=8, vocab=VOCAB)
    running = [request(str(slot), presence_penalty=1.0, min_new_tokens=2, stops=(3,)) for slot in range(8)]
    counts.add_requests(running, list(range(8)))
    assert [tensor.data_ptr() for tensor in held()] == before


def test_a_request_that_vanished_unsaid_holds_nothing() -> None:
    counts, waiting = table(), request("a", presence_penalty=1.0)
    counts.add_requests([waiting], [3])
    assert not counts.idle
    del waiting
    assert counts.idle


@dataclass
class Info:
    """What of SGLang's sampling parameters a prefill uses here."""

    penalizer_orchestrator: Any = "sglang's"
    acc_additive_penalties: Any = "sglang's"
    acc_scaling_penalties: Any = "sglang's"


def test_a_first_token_after_a_retraction_is_penalised_for_all_before_it() -> None:
    """SGLang's own penalizers would start from nothing, and hold a request to its least length a second time."""
    counts, stock = table(), Info()
    back = request("a", presence_penalty=1.0, min_new_tokens=3, stops=(4,), emitted=(1, 1, 2))
    counts.add_requests([back, new := request("b", presence_penalty=1.0, min_new_tokens=3, stops=(4,))], [5, 6])
    batch = SimpleNamespace(sampling_info=stock, reqs=[back, new], req_pool_indices=torch.tensor([5, 6]))
    logits = torch.zeros(2, VOCAB)
    with counts.in_prefill(batch):
        assert batch.sampling_info.penalizer_orchestrator.is_required
        assert batch.sampling_info.acc_additive_penalties is batch.sampling_info.acc_scaling_penalties is None
        batch.sampling_info.penalizer_orchestrator.apply(logits)
    assert batch.sampling_info is stock
    assert logits.tolist() == [[0, -1, -1, 0, 0, 0], [0, 0, 0, 0, EARLY_STOP, 0]]


def test_a_prefill_without_penalties_is_left_alone() -> None:
    batch = SimpleNamespace(sampling_info=(stock := Info()), reqs=[], req_pool_indices=torch.tensor([]))
    with table().in_prefill(batch):
        assert batch.sampling_info is stock


def test_a_slot_starts_anew_with_its_next_request() -> None:
    counts = table()
    first = request("a", presence_penalty=1.0)
    counts.add_requests([first], [3])
    counts.count([first], torch.tensor([3]), torch.tensor([[1]]), torch.tensor([[True]]))
    counts.remove_request("a")
    assert counts.idle
    running = [request("b", presence_penalty=1.0), request("c", presence_penalty=2.0, emitted=(0,))]
    counts.add_requests(running, [3, 4])
    assert not counts.idle
    assert penalised(counts, [3, 4], [0, 0]).tolist() == [[0.0] * 6, [-2.0] + [0.0] * 5]


def test_a_request_may_not_end_before_its_least_length() -> None:
    counts = table()
    counts.add_requests([asked := request("a", min_new_tokens=3, stops=(4,))], [1])
    assert counts.places([asked]) is not None
    assert penalised(counts, [1], [2])[0, 4] == EARLY_STOP
    assert penalised(counts, [1], [3])[0, 4] == 0.0


def test_only_rows_of_penalised_requests_are_worked_on() -> None:
    """One of three requests has penalties: the others' rows stay as they are, and none of their counts is copied."""
    counts, copied = table(), []
    running = [request("a"), request("b", presence_penalty=1.0, emitted=(2,)), request("c")]
    counts.add_requests(running, [4, 5, 6])
    seen = counts.seen
    counts.seen = lambda slots: copied.append(slots.tolist()) or seen(slots)  # type: ignore[method-assign,func-returns-value]
    logits = torch.zeros(3, VOCAB)
    requests, rows = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    verified: Any = SimpleNamespace(logits=logits, rows=rows, requests=requests, first=requests)
    info = SimpleNamespace(logit_bias=None, is_all_greedy=True)
    lengths = torch.tensor([9, 9, 9])
    batch = SimpleNamespace(
        reqs=running, sampling_info=info, req_pool_indices=torch.tensor([4, 5, 6]), seq_lens=lengths
    )
    distribution = TargetDistribution(
        verified,
        batch=batch,
        tree=anchors_alone(torch.tensor([2, 2, 2])),
        prompt_lens=torch.tensor([9, 9, 9]),
        penalties=counts,
        grammar=None,
    )
    distribution.choose(requests, rows)
    assert logits.tolist() == [[0.0] * 6, [0.0, 0.0, -1.0, 0.0, 0.0, 0.0], [0.0] * 6]
    assert copied == [[5]]
