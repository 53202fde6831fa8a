"""The token bucket: never more in any span of time than it allows, and no request waits longer than it was told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.serving.gateway.tenants.token_bucket import TokenBucket

AMOUNTS = st.lists(st.tuples(st.floats(0, 90), st.integers(1, 400)), max_size=40)


@given(per_min=st.integers(1, 300), asked=AMOUNTS)
def test_no_more_is_taken_than_a_burst_and_the_rate(per_min: int, asked: list[tuple[float, int]]) -> None:
    bucket, now_s, taken, first = TokenBucket(per_min, now_s=0.0), 0.0, 0, True
    for pause_s, amount in asked:
        now_s += pause_s
        if bucket.wait_s(amount, now_s=now_s) == 0:
            bucket.take(amount, now_s=now_s)
            # One that is larger than the bucket finds it full, and what it took more is missing afterwards.
            assert taken + min(amount, per_min) <= per_min * (1 + now_s / 60) + 1e-6
            taken += amount
            first = False
    assert first is (taken == 0)


@given(per_min=st.integers(1, 300), asked=AMOUNTS, amount=st.integers(1, 1000))
def test_after_the_wait_it_can_be_taken(per_min: int, asked: list[tuple[float, int]], amount: int) -> None:
    bucket, now_s = TokenBucket(per_min, now_s=0.0), 0.0
    for pause_s, taken in asked:
        now_s += pause_s
        bucket.take(taken, now_s=now_s)
    wait_s = bucket.wait_s(amount, now_s=now_s)
    assert wait_s >= 0
    assert bucket.wait_s(amount, now_s=now_s + wait_s) == pytest.approx(0, abs=1e-6)


@given(per_min=st.integers(1, 300), expected=st.integers(0, 500), real=st.integers(0, 500))
def test_a_correction_leaves_what_the_real_amount_would_have_left(per_min: int, expected: int, real: int) -> None:
    settled, straight = (TokenBucket(per_min, now_s=0.0) for _ in range(2))
    settled.take(expected, now_s=1.0)
    settled.take(real - expected, now_s=1.0)
    straight.take(real, now_s=1.0)
    for now_s in (1.0, 7.0, 60.0):
        waits = [bucket.wait_s(per_min, now_s=now_s) for bucket in (settled, straight)]
        assert waits[0] == pytest.approx(waits[1])


def test_a_clock_that_is_set_back_gives_nothing() -> None:
    bucket = TokenBucket(60, now_s=100.0)
    bucket.take(60, now_s=100.0)
    for now_s in (0.0, 100.0, 0.0, 100.0):
        bucket.take(0, now_s=now_s)
        assert bucket.wait_s(60, now_s=100.0) == 60


def test_debt_survives_another_rate() -> None:
    bucket = TokenBucket(60, now_s=0.0)
    bucket.take(120, now_s=0.0)
    bucket.resize(600, now_s=0.0)
    assert bucket.wait_s(1, now_s=0.0) == pytest.approx(6.1)
