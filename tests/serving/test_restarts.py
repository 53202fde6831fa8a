"""Pauses between restarts double up to a bound and start anew after a healthy spell."""

from hypothesis import given
from hypothesis import strategies as st

from sparktier.serving.restarts import Backoff, Restarts

BACKOFF = Backoff(first_s=1.0, max_s=8.0, healthy_after_s=60.0)


def test_pauses_double_up_to_the_longest() -> None:
    restarts = Restarts(BACKOFF)
    assert [restarts.failed(served_s=0.0) for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_healthy_spell_starts_them_anew() -> None:
    restarts = Restarts(BACKOFF)
    pauses = [restarts.failed(served_s=served_s) for served_s in (0.0, 0.0, 59.9, 60.0, 0.0)]
    assert pauses == [1.0, 2.0, 4.0, 1.0, 2.0]


@given(st.lists(st.floats(0, 1e6), max_size=50), st.integers(0, 5000))
def test_a_pause_is_always_within_its_bounds(spells: list[float], failures: int) -> None:
    restarts = Restarts(BACKOFF, failures=failures)
    assert all(1.0 <= restarts.failed(served_s=served_s) <= 8.0 for served_s in spells)
