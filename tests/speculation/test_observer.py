"""What the observer makes of steps: first tokens and ends counted once, whatever the scheduler repeats.

The scheduler's overlap, which shows an ended request twice, needs a GPU, and so stands in here as its batches alone.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from sparktier.serving.engine.observer import Observer
from sparktier.serving.engine.speculation.plan import Plan, Rung
from sparktier.serving.engine.tiers import Tiers
from support.rank_states import figures_of


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
    watch.stepped(batch("prefill", one))
    one.output_ids += [0] * 20
    clock.now_s = 2.0
    watch.stepped(batch("decode", ends(one)))
    clock.now_s = 3.0
    watch.stepped(batch("decode", one))
    assert watch.speeds([]) == {1: [10.0]}


def test_a_request_that_comes_back_keeps_its_first_token_and_is_counted_once() -> None:
    watch, clock = observer()
    one = request(1, tier=9)
    watch.stepped(batch("prefill", one))
    one.output_ids += [0] * 10
    clock.now_s = 4.0
    watch.stepped(batch("prefill", one))
    one.output_ids += [0] * 10
    clock.now_s = 5.0
    assert watch.speeds([one]) == {0: [4.0]}
    assert watch.unknown_tier_requests == 1


@pytest.mark.parametrize(
    ("worker", "rung"),
    [
        (None, Rung.OFF),
        (SimpleNamespace(plan=Plan(rung=Rung.CHAIN_SHORT)), Rung.CHAIN_SHORT),
        (SimpleNamespace(plan=Plan(rung=Rung.CHAIN), figures=figures_of((0, 1, 1))), 2),
        (SimpleNamespace(plan=Plan(rung=Rung.OFF), figures=figures_of((0, 1, 1))), 2),
    ],
    ids=["none", "no figures", "figures", "plan changed since"],
)
def test_a_step_belongs_to_the_rung_it_ran_on(worker: Any, rung: int) -> None:
    watch, clock = observer(worker)
    clock.now_s = 1.0
    watch.stepped(batch("decode"))
    assert set(watch.times.step_ms) == {rung}


def test_a_prompt_still_in_chunks_has_no_first_token() -> None:
    watch, _ = observer()
    one = request(0)
    watch.stepped(batch("prefill", one))
    assert not hasattr(one, "sparktier_first_token_s")
