"""The ladder's choice: the fastest measured rung at any load, no flapping between equals, and old speeds forgotten."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.cluster.rung_policy import Ladder

TIMES_MS = st.floats(1.0, 500.0)
LENGTHS = st.floats(1.0, 6.0)


def observed(rungs: dict[int, tuple[float, float]], users: int = 4) -> Ladder:
    """A ladder on which each rung was seen to take a time and to yield a length."""
    ladder = Ladder()
    for rung, (step_ms, length) in rungs.items():
        ladder.observe(rung, users=users, steps=50, step_ms=step_ms, round_tokens=length)
    return ladder


@given(st.dictionaries(st.integers(0, 3), st.tuples(TIMES_MS, LENGTHS), min_size=1), st.integers(1, 64))
def test_the_fastest_measured_rung_is_chosen(rungs: dict[int, tuple[float, float]], users: int) -> None:
    best = max(length / step_ms for step_ms, length in rungs.values())
    step_ms, length = rungs[observed(rungs).choose(users=users)]
    assert length / step_ms == pytest.approx(best)


@given(st.dictionaries(st.integers(0, 3), st.tuples(TIMES_MS, LENGTHS), min_size=1), st.integers(0, 3))
def test_a_rung_stays_only_when_hardly_slower_than_the_best(rungs: dict[int, tuple[float, float]], now: int) -> None:
    ladder = observed(rungs)
    chosen, rates = ladder.choose(users=4, now=now), ladder.rates(4)
    assert rates[chosen] * 1.021 >= max(rates.values())
    assert ladder.choose(users=4, now=chosen) == chosen


def test_equals_do_not_take_turns() -> None:
    ladder = observed({1: (100.0, 2.0), 2: (101.0, 2.0)})
    assert ladder.choose(users=4, now=2) == 2
    assert ladder.choose(users=4, now=1) == 1


def test_nothing_measured_means_off() -> None:
    assert Ladder().choose(users=1) == 0
    assert Ladder().choose(users=1, now=2) == 0


def test_a_crossover_lies_where_the_lines_cross() -> None:
    ladder = Ladder()
    for users, off_ms, tree_ms in ((1, 100.0, 120.0), (16, 130.0, 420.0)):
        ladder.observe(0, users=users, steps=50, step_ms=off_ms, round_tokens=1.0)
        ladder.observe(3, users=users, steps=50, step_ms=tree_ms, round_tokens=2.0)
    # 2 * (100 + 2 (u - 1)) = 120 + 20 (u - 1) at u = 6.
    assert [ladder.choose(users=users) for users in (1, 5, 7, 16, 99)] == [3, 3, 0, 0, 0]


def test_what_was_long_ago_is_forgotten() -> None:
    ladder = observed({0: (100.0, 1.0), 2: (125.0, 2.5)})
    assert ladder.choose(users=4, now=2) == 2
    for _ in range(20):
        ladder.observe(2, users=4, steps=50, step_ms=125.0, round_tokens=1.05)
    assert ladder.choose(users=4, now=2) == 0


def test_no_steps_teach_nothing() -> None:
    ladder = observed({0: (100.0, 1.0)})
    ladder.observe(2, users=4, steps=0, step_ms=1.0, round_tokens=9.0)
    assert ladder.choose(users=4) == 0


def test_a_rung_measured_with_one_user_is_not_chosen_for_many() -> None:
    """A tree that took 10 ms alone says nothing of 16 users; what was measured there is known."""
    ladder = Ladder()
    ladder.observe(3, users=1, steps=50, step_ms=10.0, round_tokens=3.0)
    ladder.observe(0, users=16, steps=50, step_ms=20.0, round_tokens=1.0)
    assert ladder.rates(16)[3] < ladder.rates(16)[0]
    assert ladder.choose(users=16, now=0) == 0
    assert ladder.choose(users=16, now=3) == 0
    assert ladder.choose(users=1) == 3


def test_times_go_on_as_steeply_as_they_were_measured() -> None:
    ladder = Ladder()
    for users, step_ms in ((4, 40.0), (8, 60.0)):
        ladder.observe(1, users=users, steps=50, step_ms=step_ms, round_tokens=1.0)
    step_ms = {users: 1000.0 / ladder.rates(users)[1] for users in (1, 2, 6, 12, 16, 64)}
    assert step_ms[6] == pytest.approx(50.0)
    assert step_ms[12] == pytest.approx(80.0)
    assert step_ms[16] == pytest.approx(100.0)
    assert step_ms[2] == pytest.approx(30.0)
    assert step_ms[1] == pytest.approx(25.0)
    assert step_ms[64] == pytest.approx(340.0)


def test_two_loads_that_took_the_same_promise_nothing_far_beyond_them() -> None:
    ladder = Ladder()
    for users in (1, 2):
        ladder.observe(3, users=users, steps=50, step_ms=10.0, round_tokens=3.0)
    assert 1000.0 * 3.0 / ladder.rates(4)[3] == pytest.approx(10.0)
    assert 1000.0 * 3.0 / ladder.rates(64)[3] == pytest.approx(160.0)


@given(
    st.dictionaries(st.integers(1, 64), st.tuples(TIMES_MS, st.integers(1, 500)), min_size=1, max_size=8),
    st.lists(st.floats(1.0, 256.0), min_size=2, max_size=12),
)
def test_more_users_never_make_a_step_shorter(measured: dict[int, tuple[float, int]], users: list[float]) -> None:
    ladder = Ladder()
    for load, (step_ms, steps) in measured.items():
        ladder.observe(0, users=load, steps=steps, step_ms=step_ms, round_tokens=1.0)
    times = [1.0 / ladder.rates(load)[0] for load in sorted(users)]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in pairwise(times))
