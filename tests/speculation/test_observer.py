"""What the observer makes of steps: first tokens and ends counted once, whatever the scheduler repeats.

The scheduler's overlap, which shows an ended request twice, needs a GPU, and so stands in here as its batches alone.
"""

from types import SimpleNamespace
from typing import Any

from sparktier.serving.engine.observer import Observer
from sparktier.serving.engine.tiers import Tiers


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


def observer() -> tuple[Observer, Clock]:
    clock = Clock()
    return Observer(SimpleNamespace(draft_worker=None), Tiers(ids=(0, 1), default=0), clock=clock), clock


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


def test_a_prompt_still_in_chunks_has_no_first_token() -> None:
    watch, _ = observer()
    one = request(0)
    watch.stepped(batch("prefill", one))
    assert not hasattr(one, "sparktier_first_token_s")
