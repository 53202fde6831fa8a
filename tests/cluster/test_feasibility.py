"""The speed of one user alone: against a loop over everything that a step can do."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparktier.cluster.feasibility import fastest_alone_tok_s, largest_chunk_tokens
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.step_times import StepTimeTable, reference_table

TABLE = reference_table("avx2")


def table(row_ms: float, draft_ms: float) -> StepTimeTable:
    curves = {"per_rows_ms": ((1, 0.0), (2, row_ms)), "draft_ms": {0: ((1, 0.0),), 2: ((1, draft_ms),)}}
    return StepTimeTable.model_validate(TABLE.model_dump() | curves)


@given(st.floats(0.0, 200.0), st.floats(0.0, 500.0), st.integers(0, 7))
def test_it_is_the_best_of_every_rung_and_number_of_rows(row_ms: float, draft_ms: float, block: int) -> None:
    times = StepTimeModel(table(row_ms, draft_ms))
    one_ms = float(times.step_ms(rung=0, requests=1, rows=np.array([1]))[0])
    every = [1000.0 / one_ms]
    every += [1000.0 * n / (one_ms + draft_ms + row_ms * (n - 1)) for n in range(1, block + 2)]
    found = fastest_alone_tok_s(times, {0: 0, 2: block})
    assert abs(found - max(every)) < 1e-9 * max(every)


@given(st.floats(0.5, 2000.0), st.integers(1, 64), st.integers(0, 3000), st.floats(0.5, 2.0))
def test_no_larger_chunk_fits_the_longest_stall(stall_ms: float, unit: int, most: int, drift: float) -> None:
    times = StepTimeModel(TABLE, drift)
    fitting = [tokens for tokens in range(unit, most + 1, unit) if times.prefill_ms(tokens) <= stall_ms]
    found = largest_chunk_tokens(times, max_stall_ms=stall_ms, unit_tokens=unit, most_tokens=most)
    assert found == max(fitting, default=0)
