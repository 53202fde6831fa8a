"""What the observer makes of steps: first tokens and ends counted once, whatever the scheduler repeats.

The scheduler's overlap, which shows an ended request twice, needs a GPU, and so stands in here as its batches alone.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms, keys_of
from sparktier.serving.engine.native.native_worker import NativeWorker
from sparktier.serving.engine.plan.in_force import PlanInForce
from sparktier.serving.engine.speculation.step_result import CountedResult, StepCounter, StepRecord
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
    return SimpleNamespace(rid="r", output_ids=[0] * tokens, sampling_params=params, finished=lambda: ended)


def batch(kind: str, *requests: Any) -> Any:
    mode = SimpleNamespace(is_decode=lambda: kind == "decode", is_extend=lambda: kind == "prefill")
    return SimpleNamespace(forward_mode=mode, reqs=list(requests))


def observer(worker: Any = None, *, rung: Rung = Rung.OFF) -> tuple[Observer, Clock]:
    clock = Clock()
    start = EnginePlan(rung=rung, tiers={0: TierTerms(), 1: TierTerms(4.0)})
    in_force = PlanInForce(start, highest=Rung.TREE, safe=Rung.OFF, clock=clock)
    return Observer(SimpleNamespace(draft_worker=worker, sparktier_plan=in_force), clock=clock), clock


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


def test_the_canary_s_own_requests_are_no_load() -> None:
    watch, clock = observer()
    probe, one = request(1), request(1)
    probe.rid = "HEALTH_CHECK_canary_1"
    watch.stepped(batch("prefill", probe, one), None)
    clock.now_s = 1.0
    queues = SimpleNamespace(grammar_queue=[])
    watch._scheduler.waiting_queue, watch._scheduler.grammar_manager = [probe], queues
    assert watch._users([])["arrivals_s"] == {1: 1.0}
    assert watch._users([])["queue_age_ms"] == {}


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


@pytest.mark.parametrize("rung", [Rung.OFF, Rung.CHAIN_SHORT])
def test_a_step_without_a_record_ran_on_the_plan_s_rung(rung: Rung) -> None:
    watch, clock = observer(rung=rung)
    clock.now_s = 1.0
    watch.stepped(batch("decode"), SimpleNamespace())
    assert set(watch.times.step_ms) == {rung}


def recorded(rung: int, *, tier: int, rows: int, accepted: int) -> Any:
    """The result of a step of one request, as our worker returns it and SGLang has read it."""
    record = StepRecord(
        Phases(torch.device("cpu")), rung, torch.tensor([tier]), torch.tensor([rows]), torch.tensor([rows - 1])
    )
    return CountedResult(record=record, num_correct_drafts_per_req_cpu=[accepted])


def counting_worker(kind: Any) -> Any:
    worker = kind.__new__(kind)
    worker.spec_stats = SpeculationStats(block_tokens=4)
    worker._counter, worker.pacer = StepCounter(worker.spec_stats, None, None), None
    return worker


@pytest.mark.parametrize("kind", [LadderWorker, NativeWorker])
def test_a_step_is_counted_by_its_own_record_whatever_became_of_others(kind: Any) -> None:
    """The first result is never processed, and the plan has changed since both were launched."""
    recorded(1, tier=0, rows=2, accepted=1)
    worker = counting_worker(kind)
    watch, clock = observer(worker)
    clock.now_s = 1.0
    watch.stepped(batch("decode"), recorded(2, tier=5, rows=4, accepted=3))
    assert set(watch.times.step_ms) == {2}
    assert set(worker.spec_stats.by_tier) == {5}
    assert (worker.spec_stats.by_tier[5].rows, worker.spec_stats.by_tier[5].tokens) == (4, 4)


def test_a_paced_steps_time_and_rows_reach_the_pacer() -> None:
    noted: list[Any] = []
    worker = counting_worker(LadderWorker)
    worker.pacer = SimpleNamespace(took=lambda *facts, **rows: noted.append((facts, rows)))
    watch, clock = observer(worker)
    one = request(3)
    watch.stepped(batch("prefill", one), None)
    clock.now_s = 0.25
    watch.stepped(batch("decode", one), recorded(2, tier=1, rows=4, accepted=3))
    assert noted == [((250.0, [one]), {"rung": 2, "rows": 4})]


def test_a_prompt_still_in_chunks_has_no_first_token() -> None:
    watch, _ = observer()
    one = request(0)
    watch.stepped(batch("prefill", one), None)
    assert not hasattr(one, "sparktier_first_token_s")


def test_a_promise_is_judged_by_the_terms_of_admission() -> None:
    """Tier 1 promised 4 tokens a second when it was admitted; later plans don't change what was met."""
    watch, clock = observer()
    quick, slow, short = request(1), request(1), request(1)
    watch.stepped(batch("prefill", quick, slow, short), None)
    later = keys_of(EnginePlan(epoch=1, version=1, rung=Rung.OFF, tiers={0: TierTerms(), 1: TierTerms(900.0)}))
    assert watch._plan.take(later) is None
    for one, tokens in ((quick, 41), (slow, 40), (short, 31)):
        one.output_ids = [0] * tokens
    clock.now_s = 10.0
    watch.stepped(batch("decode", ends(quick), ends(slow), ends(short)), None)
    assert watch._promises.met == {1: (1, 2)}


def test_arrivals_count_those_who_wait_and_ages_are_of_the_oldest() -> None:
    watch, clock = observer()
    came, waits, older = request(1), request(0, tier=0), request(0, tier=0)
    for one, at_s in ((came, 20.0), (waits, 39.0), (older, 38.5)):
        one.time_stats = SimpleNamespace(scheduler_recv_time=at_s)
    queues = SimpleNamespace(grammar_queue=[older])
    watch._scheduler.waiting_queue, watch._scheduler.grammar_manager = [waits], queues
    clock.now_s = 21.0
    watch.stepped(batch("prefill", came), None)
    clock.now_s = 40.0
    found = watch._users([])
    assert found["queue_age_ms"] == {0: 1500}
    assert found["arrivals_s"] == {0: 2 / 30, 1: 1 / 30}
    clock.now_s = 51.0
    assert watch._users([])["arrivals_s"] == {0: 2 / 30}


def test_accepted_tokens_are_of_each_user() -> None:
    watch, clock = observer()
    one = request(1)
    watch.stepped(batch("prefill", one), None)
    one.output_ids, one.spec_verify_ct = [0] * 21, 8
    running = request(41)
    running.spec_verify_ct = 10
    clock.now_s = 2.0
    watch.stepped(batch("decode", ends(one)), None)
    watch._scheduler.waiting_queue, watch._scheduler.grammar_manager = [], SimpleNamespace(grammar_queue=[])
    assert watch._users([running, request(41)])["accepted_tokens"] == {1: [2.5, 4.0]}
