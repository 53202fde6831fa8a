"""The step-time model: it prices what really runs, never falls with work, follows drift, and speaks SGLang's form."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.speculative.dspark_components.dspark_sps import SpsAdditiveCostTable

from sparktier.cluster.arrays import Ints
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ArtifactError
from sparktier.configs.step_times import StepTimeTable, reference_table
from support.step_tables import step_tables

BUCKETS = (1, 2, 4, 8, 16)


def bucketed(name: str = "avx2", buckets: tuple[int, ...] = BUCKETS) -> StepTimeModel:
    table = reference_table(name)
    return StepTimeModel(table.model_copy(update={"key": table.key.model_copy(update={"row_buckets": buckets})}))


def counts(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("requests", [1, 4, 16])
@pytest.mark.parametrize("rows", [1, 12])
def test_the_committed_tables_are_the_fits_they_name(requests: int, rows: int) -> None:
    def ms(name: str, rung: int) -> float:
        model = StepTimeModel(reference_table(name))
        return float(model.step_ms(rung=rung, requests=requests, rows=counts(rows * requests))[0])

    extra = (rows - 1) * requests
    assert ms("avx2", 0) == pytest.approx(93 + 11.3 * requests + 4.1 * extra)
    assert ms("avx2", 2) == pytest.approx(93 + 11.3 * requests + 4.1 * extra + 29 + 4.8 * requests)
    assert ms("avx2", 3) == pytest.approx(93 + 11.3 * requests + 4.1 * extra + 39 - 1.8 * requests)
    assert ms("amx", 2) == pytest.approx(41 + 9.2 * requests + 0.96 * extra + 14)
    assert ms("production", 2) == pytest.approx(15.3 + 0.0289 * rows * requests)


@settings(max_examples=50)
@given(step_tables(), st.integers(1, 40), st.lists(st.integers(1, 400), min_size=2), st.integers(0, 10_000))
def test_no_step_is_shorter_for_more_rows_requests_or_context(
    table: StepTimeTable, requests: int, rows: list[int], context: int
) -> None:
    model = StepTimeModel(table)
    times = model.step_ms(rung=2, requests=requests, rows=counts(*sorted(rows)))
    assert all(later >= earlier for earlier, later in pairwise(times))
    assert (model.step_ms(rung=2, requests=requests + 1, rows=counts(*sorted(rows))) >= times * (1 - 1e-9)).all()
    assert (model.step_ms(rung=2, requests=requests, rows=counts(*sorted(rows)), context_tokens=context) >= times).all()
    assert model.prefill_ms(context + 1) >= model.prefill_ms(context)


def test_times_go_on_as_steeply_as_they_were_measured() -> None:
    model = StepTimeModel(reference_table("avx2"))
    inside, at_end, beyond = model.step_ms(rung=0, requests=1, rows=counts(191, 192, 292))
    assert beyond - at_end == pytest.approx(100 * (at_end - inside))
    assert model.prefill_ms(1_000) == pytest.approx(93 + 4.1 * 1_000)
    assert model.prefill_ms(0) == 0.0


def test_a_pass_is_priced_at_the_bucket_that_it_is_filled_up_to() -> None:
    model = bucketed()
    assert model.filled(counts(1, 3, 4, 5, 16, 17)).tolist() == [1, 4, 4, 8, 16, 17]
    three, four, five = model.step_ms(rung=2, requests=2, rows=counts(3, 4, 5))
    assert three == four < five
    assert StepTimeModel(reference_table("avx2")).filled(counts(3, 5)).tolist() == [3, 5]


@given(st.lists(st.integers(1, 60), unique=True, max_size=6).map(sorted), st.integers(1, 30), st.integers(0, 60))
def test_the_totals_leave_out_only_what_costs_as_much_as_a_larger_one(
    buckets: list[int], requests: int, more: int
) -> None:
    model, most = bucketed(buckets=tuple(buckets)), requests + more
    totals = model.totals(requests=requests, most_rows=most).tolist()
    assert totals == sorted(set(totals))
    assert totals[-1] == most
    assert totals[0] >= requests
    for left_out in set(range(requests, most + 1)) - set(totals):
        larger = min(total for total in totals if total > left_out)
        assert model.filled(counts(left_out)) == model.filled(counts(larger))


def test_a_rung_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"draft's time on rung 3 \(found rungs 0, 1, 2\)\. Measure them again"):
        StepTimeModel(reference_table("production")).step_ms(rung=3, requests=1, rows=counts(1))


def test_the_drift_follows_a_machine_that_is_twice_as_slow_and_back() -> None:
    model, truth = StepTimeModel(reference_table("avx2")), StepTimeModel(reference_table("avx2"), drift_frac=2.0)
    rng = np.random.default_rng(0)
    for now in (truth, StepTimeModel(truth.table)):
        for _ in range(200):
            rows = counts(int(rng.integers(4, 60)))
            took_ms = float(now.step_ms(rung=2, requests=4, rows=rows)[0]) * rng.normal(1.0, 0.03)
            model = model.seen(predicted_ms=float(model.step_ms(rung=2, requests=4, rows=rows)[0]), took_ms=took_ms)
        assert model.drift_frac == pytest.approx(now.drift_frac, rel=0.05)


def test_one_stall_hardly_moves_the_drift_and_nonsense_does_not() -> None:
    model = StepTimeModel(reference_table("avx2"))
    assert model.seen(predicted_ms=94.0, took_ms=6_000.0).drift_frac < 1.05
    for predicted_ms, took_ms in ((0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (float("inf"), 1.0)):
        assert model.seen(predicted_ms=predicted_ms, took_ms=took_ms) == model


def test_the_drift_stays_within_its_bounds() -> None:
    model = StepTimeModel(reference_table("avx2"))
    for took_ms, bound in ((1e6, 4.0), (1e-3, 0.25)):
        for _ in range(200):
            model = model.seen(predicted_ms=100.0, took_ms=took_ms)
        assert model.drift_frac == bound


@settings(max_examples=50)
@given(step_tables(), st.integers(1, 64), st.integers(0, 200), st.sampled_from([1.0, 0.5, 3.0]))
def test_sglang_reads_the_same_times(table: StepTimeTable, requests: int, extra: int, drift: float) -> None:
    model = StepTimeModel(table, drift_frac=drift)
    written = json.dumps(model.to_sps(rung=2, most_requests=64, most_rows=264))
    theirs = SpsAdditiveCostTable.from_json(written).step_time(num_reqs=requests, budget=extra)
    ours = model.step_ms(rung=2, requests=requests, rows=counts(requests + extra))[0]
    assert theirs * 1000.0 == pytest.approx(ours)
