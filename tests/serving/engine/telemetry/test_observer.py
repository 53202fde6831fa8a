"""What the observer makes of steps: first tokens and ends counted once, whatever the scheduler repeats.

The scheduler's overlap, which shows an ended request twice, needs a GPU, and so stands in here as its batches alone.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparktier.configs.plan_keys import Plan, Rung
from sparktier.serving.engine.rank_options import Tiers
from sparktier.serving.engine.speculation.step_result import CountedResult, StepRecord
from sparktier.serving.engine.speculation.worker import LadderWorker
from sparktier.serving.engine.telemetry.observer import Observer
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats
from sparktier.serving.engine.telemetry.step_phases import Phases


class Clock:
    """Seconds that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def request(tokens: int, *, tier: int = 1, ended: bool = False) -> Any:
    params = SimpleNamespace(custom_params={"sparktier_tier": tier})
    return SimpleNamespace(output_ids=[0] * tokens, sampling_params=params, finished=lambda: ended)


def batch(kind: str, *requests: Any) -> Any:
    mode = SimpleNamespace(is_decode=lambda: kind == "decode", is_extend=lambda: kind == "prefill")
    return SimpleNamespace(forward_mode=mode, reqs=list(requests))


def observer(worker: Any = None) -> tuple[Observer, Clock]:
    clock = Clock()
    return Observer(SimpleNamespace(draft_worker=worker), Tiers(ids=(0, 1), default=0), clock=clock), clock


def ends(one: Any) -> Any:
    one.finished = lambda: True
    return one


def test_a_request_seen_twice_after_its_end_counts_once() -> None:
    watch, clock = observer()
    one = request(1)
    watch.stepped(batch("prefill", one), None)
    one.output_ids += [0] * 20
    clock.now_s = 2.0
    watch.stepped(batch("decode", ends(one)), None)
    clock.now_s = 3.0
    watch.stepped(batch("decode", one), None)
    assert watch.speeds([]) == {1: [10.0]}


def test_a_request_that_comes_back_keeps_its_first_token_and_is_counted_once() -> None:
    watch, clock = observer()
    one = request(1, tier=9)
    watch.stepped(batch("prefill", one), None)
    one.output_ids += [0] * 10
    clock.now_s = 4.0
    watch.stepped(batch("prefill", one), None)
    one.output_ids += [0] * 10
    clock.now_s = 5.0
    assert watch.speeds([one]) == {0: [4.0]}
    assert watch.unknown_tier_requests == 1


@pytest.mark.parametrize(
    ("worker", "rung"),
    [(None, Rung.OFF), (SimpleNamespace(plan=Plan(rung=Rung.CHAIN_SHORT)), Rung.CHAIN_SHORT)],
    ids=["none", "a worker without records"],
)
def test_a_step_without_a_record_ran_on_the_plan_s_rung(worker: Any, rung: int) -> None:
    watch, clock = observer(worker)
    clock.now_s = 1.0
    watch.stepped(batch("decode"), SimpleNamespace())
    assert set(watch.times.step_ms) == {rung}


def recorded(rung: int, *, tier: int, rows: int, accepted: int) -> Any:
    """The result of a step of one request, as our worker returns it and SGLang has read it."""
    record = StepRecord(
        Phases(torch.device("cpu")), rung, torch.tensor([tier]), torch.tensor([rows]), torch.tensor([rows - 1])
    )
    return CountedResult(record=record, num_correct_drafts_per_req_cpu=[accepted])


def counting_worker() -> Any:
    worker = LadderWorker.__new__(LadderWorker)
    worker.spec_stats, worker._spans, worker.plan = SpeculationStats(block_tokens=4), None, Plan(rung=Rung.OFF)
    return worker


def test_a_step_is_counted_by_its_own_record_whatever_became_of_others() -> None:
    """The first result is never processed, and the plan has changed since both were launched."""
    recorded(1, tier=0, rows=2, accepted=1)
    worker = counting_worker()
    watch, clock = observer(worker)
    clock.now_s = 1.0
    watch.stepped(batch("decode"), recorded(2, tier=5, rows=4, accepted=3))
    assert set(watch.times.step_ms) == {2}
    assert set(worker.spec_stats.by_tier) == {5}
    assert (worker.spec_stats.by_tier[5].rows, worker.spec_stats.by_tier[5].tokens) == (4, 4)


def test_a_prompt_still_in_chunks_has_no_first_token() -> None:
    watch, _ = observer()
    one = request(0)
    watch.stepped(batch("prefill", one), None)
    assert not hasattr(one, "sparktier_first_token_s")
