"""Acceptance by position counts a position only when all before it stood, and fades."""

import pytest

from sparktier.serving.engine.speculation.figures import Figures


def test_a_position_counts_when_those_before_it_stood() -> None:
    figures = Figures(block_tokens=3)
    # Three drafts verified: all stood; the first fell; the second fell. One request verified nothing.
    figures.step(rung=2, took_ms=10.0, tiers=[1, 1, 1, 1], rows=[4, 4, 4, 1], depths=[3, 3, 3, 0], accepted=[3, 0, 1, 0])
    assert figures.by_tier[1].fractions() == [pytest.approx(2 / 3), pytest.approx(1 / 2), 1.0]
    assert (figures.steps, figures.rows, figures.tokens) == (1, 13, 8)


def test_tiers_and_rungs_are_kept_apart() -> None:
    figures = Figures(block_tokens=2)
    figures.step(rung=2, took_ms=10.0, tiers=[0, 5], rows=[3, 3], depths=[2, 2], accepted=[2, 0])
    figures.step(rung=0, took_ms=4.0, tiers=[0], rows=[1], depths=[0], accepted=[0])
    figures.step(rung=2, took_ms=20.0, tiers=[0], rows=[3], depths=[2], accepted=[2])
    assert figures.by_tier[0].fractions() == [1.0, 1.0]
    assert figures.by_tier[5].fractions() == [0.0]
    assert figures.step_ms == {2: pytest.approx(11.0), 0: 4.0}


def test_old_traffic_fades() -> None:
    figures = Figures(block_tokens=1)
    for accepted in (0, 1):
        for _ in range(20_000):
            figures.step(rung=1, took_ms=1.0, tiers=[0], rows=[2], depths=[1], accepted=[accepted])
    assert figures.by_tier[0].fractions()[0] > 0.99
