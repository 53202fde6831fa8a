"""The rivals do what their papers say: needs first, then what is likeliest or worth its time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.cluster.simulator.rival_planners import adaserve_rows, adaserve_tokens, floor_tokens, floored_rows
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, expected, planned_rows, share_out
from sparktier.configs.step_times import reference_table

AVX2 = StepTimeModel(reference_table("avx2"))


def drawn(seed: int, requests: int = 6, nodes: int = 5) -> Offers:
    rng = np.random.default_rng(seed)
    survival = np.cumprod(rng.uniform(0.2, 0.95, (requests, nodes)), axis=1)
    return Offers(survival, rng.integers(1, nodes + 2, requests), np.ones(requests))


def test_a_floor_is_the_promise_and_a_share_of_what_is_missing() -> None:
    needs = floor_tokens(
        promise_tok_s=np.array([0.0, 8.0, 8.0, 8.0, 8.0]),
        since_first_s=np.array([9.0, 1.0, 1.0, 9.0, 1.0]),
        delivered_tokens=np.array([1, 9, 7, 1, 99]),
        step_s=0.25,
    )
    # Half a second at the promise is the most that counts: 4 tokens, half a token in each of 8 steps.
    assert needs.tolist() == [0.0, 2.0, 2.25, 2.5, 1.5]


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(0.0, 4.0), min_size=6, max_size=6))
def test_floors_are_met_where_caps_allow(seed: int, needs: list[float]) -> None:
    offered, need = drawn(seed), np.array(needs)
    rows = floored_rows(offered, need, AVX2, rung=2)
    tokens = expected(offered, rows, AVX2, rung=2).tokens
    assert ((tokens >= need - 1e-9) | (rows == np.minimum(offered.most_rows, 6))).all()
    assert (rows <= offered.most_rows).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_without_needs_the_rivals_are_the_planner_and_the_likeliest_rows(seed: int, total: int) -> None:
    offered, none = drawn(seed), np.zeros(6)
    assert floored_rows(offered, none, AVX2, rung=2).tolist() == planned_rows(offered, offered, AVX2, rung=2).tolist()
    rows = adaserve_rows(offered, none, total=total, most_need_rows=5)
    assert rows.tolist() == share_out(offered, total).tolist()


def test_adaserves_need_is_what_brings_a_request_back_to_its_promise() -> None:
    needs = adaserve_tokens(
        promise_tok_s=np.array([0.0, 8.0, 8.0]),
        since_first_s=np.array([9.0, 1.0, 1.0]),
        delivered_tokens=np.array([1, 9, 99]),
        step_s=0.25,
    )
    assert needs.tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("total", "most_need_rows", "rows"),
    [
        (3, 9, [1, 1, 1]),
        (5, 9, [1, 1, 3]),  # the largest need first
        (7, 9, [2, 1, 4]),  # then the next
        (8, 9, [2, 2, 4]),  # then the likeliest
        (7, 1, [2, 3, 2]),  # no need takes more than one row
        (99, 9, [4, 4, 4]),
    ],
)
def test_adaserve_serves_the_largest_need_first(total: int, most_need_rows: int, rows: list[int]) -> None:
    survival = np.array([[0.5, 0.4, 0.3], [0.9, 0.8, 0.7], [0.2, 0.1, 0.05]])
    offered = Offers(survival, np.array([4, 4, 4]), np.array([9.0, 1.0, 1.0]))
    need = np.array([1.5, 0.0, 3.0])
    assert adaserve_rows(offered, need, total=total, most_need_rows=most_need_rows).tolist() == rows


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(0.0, 4.0), min_size=6, max_size=6), st.integers(0, 40))
def test_adaserve_keeps_the_total_and_the_caps(seed: int, needs: list[float], total: int) -> None:
    offered = drawn(seed)
    rows = adaserve_rows(offered, np.array(needs), total=total, most_need_rows=3)
    assert rows.sum() <= max(total, 6)
    assert (rows >= 1).all()
    assert (rows <= offered.most_rows).all()
