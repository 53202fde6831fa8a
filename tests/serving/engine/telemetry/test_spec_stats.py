"""Statistics of speculation: a position counts when all before it were accepted; tiers stay apart; windows fade."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats, acceptance


def step(stats: SpeculationStats, **changes: Any) -> None:
    one = {"rung": 2, "phase_ms": {}, "tiers": [0], "rows": [3], "depths": [2], "accepted": [2]}
    stats.step(**(one | changes))


def test_a_position_counts_when_those_before_it_were_accepted() -> None:
    stats = SpeculationStats(block_tokens=3)
    # Three drafts verified: all accepted; the first rejected; the second rejected. One request verified nothing.
    rounds = {"rows": [4, 4, 4, 1], "depths": [3, 3, 3, 0], "accepted": [3, 0, 1, 0]}
    step(stats, tiers=[1, 1, 1, 1], **rounds)
    tier = stats.by_tier[1]
    assert acceptance([tier]) == [pytest.approx(2 / 3), pytest.approx(1 / 2), 1.0]
    assert (tier.rounds, tier.rows, tier.tokens) == (4, 13, 8)
    assert tier.recent_tokens / tier.recent_rounds == 2.0


def test_a_tree_counts_by_its_depth_not_by_its_rows() -> None:
    stats = SpeculationStats(block_tokens=5)
    step(stats, rows=[14], depths=[3], accepted=[3])
    assert stats.by_tier[0].verified == [1, 1, 1, 0, 0]
    assert stats.by_tier[0].rows == 14


def test_tiers_and_parts_are_kept_apart() -> None:
    stats = SpeculationStats(block_tokens=2)
    step(stats, tiers=[0, 5], rows=[3, 3], depths=[2, 2], accepted=[2, 0], phase_ms={"draft": 2.0, "verify": 5.0})
    step(stats, rung=0, rows=[1], depths=[0], accepted=[0], phase_ms={"verify": 4.0})
    assert acceptance([stats.by_tier[0]]) == [1.0, 1.0]
    assert acceptance([stats.by_tier[5]]) == [0.0]
    assert (stats.rung, stats.phase_ms) == (0, {"draft": 2.0, "verify": 9.0})


def test_acceptance_of_several_groups_weighs_what_each_verified() -> None:
    one, other = SpeculationStats(block_tokens=1), SpeculationStats(block_tokens=1)
    step(one, rows=[2], depths=[1], accepted=[1])
    for _ in range(3):
        step(other, rows=[2], depths=[1], accepted=[0])
    assert acceptance([one.by_tier[0], other.by_tier[0]]) == [0.25]


def test_old_traffic_fades_and_totals_do_not() -> None:
    stats = SpeculationStats(block_tokens=1)
    for accepted in (0, 1):
        for _ in range(20_000):
            step(stats, rows=[2], depths=[1], accepted=[accepted])
    tier = stats.by_tier[0]
    assert acceptance([tier])[0] > 0.99
    assert tier.recent_tokens / tier.recent_rounds > 1.99
    assert (tier.rounds, tier.tokens) == (40_000, 60_000)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_a_batch_counts_as_its_requests_one_by_one(rounds: list[tuple[int, int, int]]) -> None:
    whole, single = SpeculationStats(block_tokens=4), SpeculationStats(block_tokens=4)
    columns = [list(column) for column in zip(*((t, d + 1, d, min(a, d)) for t, d, a in rounds), strict=True)]
    names = ("tiers", "rows", "depths", "accepted")
    step(whole, **dict(zip(names, columns, strict=True)))
    for one in zip(*columns, strict=True):
        step(single, **{name: [value] for name, value in zip(names, one, strict=True)})
    assert whole == single
