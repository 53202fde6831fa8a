"""Pauses between restarts double up to a bound, differ between parts, and start anew after a healthy spell."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.settings.settings import SupervisionSettings
from sparktier.serving.supervision.backoff import Restarts

SETTINGS = SupervisionSettings(restart_backoff_first_s=1.0, restart_backoff_max_s=8.0, healthy_after_s=60.0)


class Longest(random.Random):
    """Draws the upper end of every range."""

    def uniform(self, a: float, b: float) -> float:
        """Return `b`."""
        return b


def test_pauses_double_up_to_the_longest() -> None:
    restarts = Restarts(SETTINGS, Longest())
    assert [restarts.failed(served_s=0.0) for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_healthy_spell_starts_them_anew() -> None:
    restarts = Restarts(SETTINGS, Longest())
    pauses = [restarts.failed(served_s=served_s) for served_s in (0.0, 0.0, 59.9, 60.0, 0.0)]
    assert pauses == [1.0, 2.0, 4.0, 1.0, 2.0]


def test_parts_that_failed_together_come_back_one_after_the_other() -> None:
    pauses = sorted(Restarts(SETTINGS, random.Random(part)).failed(served_s=0.0) for part in range(100))
    assert pauses[0] == pytest.approx(0.5, abs=0.05)
    assert pauses[-1] == pytest.approx(1.0, abs=0.05)
    assert max(b - a for a, b in itertools.pairwise(pauses)) < 0.05


@given(st.lists(st.floats(0, 1e6), max_size=50), st.integers(0, 5000), st.integers(0, 1000))
def test_a_pause_is_always_within_its_bounds(spells: list[float], failures: int, seed: int) -> None:
    restarts = Restarts(SETTINGS, random.Random(seed), failures=failures)
    assert all(0.5 <= restarts.failed(served_s=served_s) <= 8.0 for served_s in spells)
