"""Step times and user speeds: idle time counts nowhere, rungs and tiers stay apart, old traffic is forgotten."""

import pytest

from sparktier.serving.engine.telemetry.step_times import LEAST_TOKENS, StepTimes, UserSpeeds, speed


def test_a_step_lasts_from_the_end_of_the_one_before() -> None:
    times = StepTimes()
    times.idle(100.0)
    times.decoded(100.010, rung=2)
    times.decoded(100.030, rung=2)
    assert times.step_ms == {2: pytest.approx(10 + 0.1 * 10)}
    times.decoded(100.035, rung=0)
    assert times.step_ms[0] == pytest.approx(5.0)
    assert (times.decode_steps, times.decode_ms) == (3, pytest.approx(35.0))


def test_idle_time_is_in_no_step() -> None:
    times = StepTimes()
    times.idle(0.0)
    times.decoded(0.010, rung=1)
    times.idle(1000.0)
    times.decoded(1000.010, rung=1)
    assert times.step_ms[1] == pytest.approx(10.0)
    assert times.prefill_frac == 0.0


def test_prefill_is_the_part_of_busy_time_it_took() -> None:
    times = StepTimes()
    times.idle(0.0)
    for second in range(200):
        times.prefilled(second + 0.25, tokens=100)
        times.decoded(second + 1.0, rung=1)
    assert times.prefill_frac == pytest.approx(0.25, abs=0.02)
    assert times.step_ms[1] == pytest.approx(750.0)
    for second in range(200, 300):
        times.decoded(second + 1.0, rung=1)
    assert times.prefill_frac < 0.001


@pytest.mark.parametrize(
    ("tokens", "first_s", "last_s", "expected"),
    [
        (21, 10.0, 12.0, 10.0),
        (LEAST_TOKENS - 1, 10.0, 12.0, None),
        (LEAST_TOKENS, 10.0, 11.0, 7.0),
        (9, 5.0, 5.0, None),
    ],
)
def test_the_first_token_is_not_part_of_the_speed(
    tokens: int, first_s: float, last_s: float, expected: float | None
) -> None:
    assert speed(tokens, first_token_s=first_s, last_token_s=last_s) == expected


def test_speeds_are_of_those_who_run_or_ended_lately() -> None:
    speeds = UserSpeeds()
    speeds.ended(10.0, tier=1, tokens=11, first_token_s=9.0)
    speeds.ended(35.0, tier=1, tokens=41, first_token_s=33.0)
    speeds.ended(36.0, tier=2, tokens=3, first_token_s=35.0)
    assert speeds.by_tier(40.0, []) == {1: [10.0, 20.0]}
    assert speeds.by_tier(41.0, [(2, 7.0), (1, 5.0)]) == {1: [20.0, 5.0], 2: [7.0]}
    assert speeds.by_tier(100.0, []) == {}


def test_a_prompt_s_token_costs_what_recent_prefills_took_each() -> None:
    times = StepTimes()
    times.idle(0.0)
    assert times.prefill_ms_per_token is None
    times.prefilled(0.2, tokens=100)
    assert times.prefill_ms_per_token == pytest.approx(2.0)
    times.decoded(1.0, rung=0)
    # A long prefill weighs by its tokens, and what decoding took is no part of it.
    times.prefilled(2.0, tokens=900)
    assert times.prefill_ms_per_token == pytest.approx((0.9 * 200 + 1000) / (0.9 * 100 + 900))
    times.prefilled(3.0, tokens=0)
    assert times.prefill_ms_per_token == pytest.approx((0.9 * 200 + 1000) / (0.9 * 100 + 900))
