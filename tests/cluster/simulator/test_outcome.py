"""Attainment on the hull of a rival's points, and what counts as a promise kept."""

import numpy as np
import pytest

from sparktier.cluster.simulator.answers import chain_answer
from sparktier.cluster.simulator.outcome import Point, attainment_on_hull, tier_rows
from sparktier.cluster.simulator.sim_engine import Ended, SimRequest
from sparktier.cluster.simulator.users import Served

POINTS = [Point(100.0, 0.5), Point(90.0, 0.8), Point(80.0, 0.85), Point(70.0, 0.95)]


@pytest.mark.parametrize(
    ("throughput", "attainment"), [(100.0, 0.5), (95.0, 0.65), (90.0, 0.8), (80.0, 0.875), (60.0, 0.95), (110.0, 0.5)]
)
def test_the_hull_joins_the_points_that_no_mixture_beats(throughput: float, attainment: float) -> None:
    assert attainment_on_hull(POINTS, throughput) == pytest.approx(attainment)


def ended(tier: int, *, tokens: int, speed_tok_s: float) -> Ended:
    places = np.zeros((tokens - 1, 1))
    answer = chain_answer(places, places[:, 0].astype(np.int64), kind="made")
    return Ended(SimRequest((0, 1), tier, 0.0, 0, answer), 0.0, 50.0, 50.0 + 1000.0 * (tokens - 1) / speed_tok_s)


def test_a_promise_counts_for_answers_long_enough() -> None:
    answers = [ended(1, tokens=32, speed_tok_s=9.0), ended(1, tokens=33, speed_tok_s=7.0)]
    answers += [ended(1, tokens=31, speed_tok_s=1.0), ended(0, tokens=64, speed_tok_s=5.0)]
    strict, lenient = tier_rows(Served(answers, 200, 10_000.0), promise_tok_s=8.0)
    assert strict["tier"] == "strict"
    assert (strict["requests"], strict["attainment_frac"], strict["goodput_tok_s"]) == (3, 0.5, 3.2)
    assert (strict["attained_tok_s_p50"], strict["throughput_tok_s"]) == (8.0, 20.0)
    assert (lenient["attainment_frac"], lenient["requests"], lenient["ttft_ms_p50"]) == (None, 1, 50.0)
