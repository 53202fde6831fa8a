"""When a promise is kept, and what the rows of offered requests say."""

import math

import pytest

from sparktier.cluster.traffic.attainment import Promise, Result, kept, tier_row

GOLD = Promise("gold", tok_s=10.0, ttft_ms=500.0)
GOOD = Result(at_ms=0.0, tokens=100, ttft_ms=400.0, tok_s=12.0)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (GOOD, True),
        (GOOD._replace(tok_s=10.0, ttft_ms=500.0), True),
        (GOOD._replace(tok_s=9.99), False),
        (GOOD._replace(ttft_ms=500.1), False),
        (GOOD._replace(ttft_ms=None), False),
        (GOOD._replace(tok_s=None), False),
        (GOOD._replace(error="429 too_many_requests"), False),
        (GOOD._replace(downgraded=True), False),
        # Of a short answer only the first token counts.
        (GOOD._replace(tokens=31, tok_s=1.0), True),
        (GOOD._replace(tokens=32, tok_s=1.0), False),
        (GOOD._replace(tokens=31, ttft_ms=501.0), False),
    ],
)
def test_what_keeps_a_promise(result: Result, expected: bool) -> None:
    assert kept(result, GOLD) is expected


def test_refusals_errors_and_downgrades_are_misses() -> None:
    results = [
        GOOD,
        GOOD._replace(error="429 too_many_requests", tokens=0, ttft_ms=None, tok_s=None),
        GOOD._replace(error="lost", tokens=50),
        GOOD._replace(downgraded=True),
        GOOD._replace(tokens=8, tok_s=None),
    ]
    row = tier_row(results, GOLD, span_ms=10_000.0, took_ms=20_000.0, throughput_tok_s=77.0)
    assert row["requests"] == 5
    assert row["attainment_frac"] == 0.25
    assert (row["short"], row["short_attainment_frac"]) == (1, 1.0)
    assert (row["errors"], row["refused"], row["downgraded"]) == (2, 1, 1)
    assert row["goodput_tok_s"] == (100 + 8) / 20
    assert row["throughput_tok_s"] == 77.0


def test_the_row_begins_as_the_design_has_it() -> None:
    row = tier_row([GOOD], GOLD, span_ms=1.0, took_ms=1.0, throughput_tok_s=1.0)
    assert list(row)[:3] == ["tier", "requests", "attainment_frac"]
    named = ["attained_tok_s_p50", "attained_tok_s_p5", "ttft_ms_p50", "ttft_ms_p99", "goodput_tok_s", "errors"]
    assert set(named) <= set(row)


def test_best_effort_promises_nothing() -> None:
    results = [GOOD, GOOD._replace(tokens=3)]
    row = tier_row(results, Promise("standard", None, None), span_ms=1.0, took_ms=1000.0, throughput_tok_s=1.0)
    assert (row["attainment_frac"], row["short_attainment_frac"], row["goodput_tok_s"]) == (None, None, None)
    assert row["attained_tok_s_p50"] == 12.0


def test_no_answer_at_all_has_no_figures() -> None:
    row = tier_row([GOOD._replace(error="lost")], GOLD, span_ms=1000.0, took_ms=1000.0, throughput_tok_s=0.0)
    assert row["attainment_frac"] == 0.0
    assert row["attained_tok_s_p50"] is None
    assert row["attained_tok_s_p50_low"] is None


def test_intervals_hold_the_figure_and_heed_bursts() -> None:
    # One half of the time is bad as a whole: resampled requests would be too sure of one half.
    def at(ms: float) -> Result:
        return GOOD._replace(at_ms=ms, tok_s=12.0 if ms < 5000 else 8.0)

    results = [at(10.0 * number) for number in range(1000)]
    row = tier_row(results, GOLD, span_ms=10_000.0, took_ms=10_000.0, throughput_tok_s=1.0)
    width = row["attainment_frac_high"] - row["attainment_frac_low"]
    of_requests = 2 * 1.96 * math.sqrt(0.25 / 1000)
    assert row["attainment_frac_low"] < 0.5 < row["attainment_frac_high"]
    assert width > 3 * of_requests
