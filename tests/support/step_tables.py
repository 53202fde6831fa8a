"""Tables of step times as Hypothesis draws them: sane ones of any form, staircases among them."""

from hypothesis import strategies as st

from sparktier.configs.step_times import StepTimeTable, TableKey

# As many rows as the few requests of a brute force bring, so that stairs lie among the totals to choose from.
MOST_ROWS = 24


def key(row_buckets: tuple[int, ...] = ()) -> TableKey:
    """Return a reference's key with these buckets."""
    return TableKey(
        model_sha256=None,
        draft_sha256=None,
        device="drawn",
        dtype="float32",
        tensor_parallel=1,
        expert_parallel=1,
        sglang="0.5.23",
        sparktier="0.1.0",
        row_buckets=row_buckets,
    )


@st.composite
def curves(draw: st.DrawFn, most: int, steps_ms: tuple[float, ...]) -> tuple[tuple[int, float], ...]:
    """Draw a curve that never falls, by some of these steps: flat stretches and steep ones."""
    at = sorted(draw(st.sets(st.integers(1, most), min_size=1, max_size=5)))
    steps = draw(st.lists(st.sampled_from(steps_ms), min_size=len(at), max_size=len(at)))
    total, points = 0.0, []
    for count, step in zip(at, steps, strict=True):
        total += step
        points.append((count, total))
    return tuple(points)


@st.composite
def step_tables(draw: st.DrawFn) -> StepTimeTable:
    """Draw a table with rungs 0 and 2; half of them fill passes up to buckets."""
    buckets = draw(st.sets(st.integers(1, MOST_ROWS), max_size=5))
    return StepTimeTable(
        key=key(tuple(sorted(buckets))),
        source="drawn",
        base_ms=draw(st.sampled_from([0.5, 5.0, 40.0])),
        per_requests_ms=draw(curves(16, (0.0, 0.5, 2.0))),
        per_rows_ms=draw(curves(MOST_ROWS, (0.0, 1.0, 4.0, 20.0))),
        draft_ms={0: ((1, 0.0),), 2: draw(curves(16, (0.0, 0.5, 2.0)))},
        per_context_ms=draw(st.sampled_from([0.0, 0.25])),
        prefill_ms=draw(curves(MOST_ROWS, (0.0, 1.0, 4.0, 20.0))),
        error_frac_p50=None,
        error_frac_p90=None,
    )
