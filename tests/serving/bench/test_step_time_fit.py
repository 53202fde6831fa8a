"""The fit of step times recovers known tables under noise, drift and stalls, and refuses what tells nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.cluster.arrays import Floats
from sparktier.configs.errors import ReplicaError
from sparktier.configs.step_times import StepTimeTable, reference_table
from sparktier.serving.bench.step_time_fit import Window, fit_table, predicted_ms

KEY = reference_table("avx2").key
PREFILL = ((8, 20.0), (64, 19.0), (512, 300.0))
DEPTHS = {0: 0, 1: 2, 2: 5, 3: 11}
SIZES = (1, 2, 4, 8, 16)
Drift = Callable[[Floats], Floats]


def ramp(at: Floats) -> Floats:
    """Twice as slow at the end as at the start."""
    return 1.0 + at / at.max()


def wave(at: Floats) -> Floats:
    """Twice as slow in the middle of the run."""
    return 1.5 - 0.5 * np.cos(2 * np.pi * at / at.max())


def grid(seed: int, repeats: int = 3) -> list[Window]:
    """Windows of a run, without times: every rung at every size, in random order, a reference between the sizes."""
    rng = np.random.default_rng(seed)
    windows: list[Window] = []

    def add(rung: int, size: int, rows: float, context: float, *, is_reference: bool) -> None:
        windows.append(Window(float(len(windows)), rung, size, rows, size * context, 0.0, 0.0, is_reference))

    for _ in range(repeats):
        for size in rng.permutation(SIZES):
            add(0, 1, 1, 300.0, is_reference=True)
            for rung, depth in (*rng.permutation(list(DEPTHS.items())), (2, 2)):
                add(int(rung), int(size), size * (1 + depth), float(rng.uniform(100, 900)), is_reference=False)
    add(0, 1, 1, 300.0, is_reference=True)
    return windows


def timed(windows: Sequence[Window], table: StepTimeTable, drift: Drift, noise: float, seed: int) -> list[Window]:
    """The windows as a machine of this table would have run them."""
    rng = np.random.default_rng(seed)
    slow = drift(np.array([window.at_s for window in windows]))
    done = []
    for window, factor in zip(windows, slow, strict=True):
        alone = replace(window, rung=0)
        rest_ms, draft_ms = predicted_ms(table, alone), predicted_ms(table, window) - predicted_ms(table, alone)
        off = factor * rng.normal(1.0, noise, 2)
        done.append(replace(window, rest_ms=rest_ms * off[0], draft_ms=draft_ms * off[1]))
    return done


def worst_frac(fitted: StepTimeTable, table: StepTimeTable, windows: Sequence[Window]) -> float:
    """The greatest difference of the two on any window, after one drift factor."""
    ratios = np.array([predicted_ms(fitted, window) / predicted_ms(table, window) for window in windows])
    return float(np.abs(ratios / np.median(ratios) - 1.0).max())


def with_context(table: StepTimeTable, per_context_ms: float) -> StepTimeTable:
    return table.model_copy(update={"per_context_ms": per_context_ms, "draft_ms": {**table.draft_ms, 3: ((1, 20.0),)}})


@settings(max_examples=10)
@given(
    st.sampled_from(["avx2", "amx", "production"]),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([ramp, wave]),
    st.integers(0, 2**32 - 1),
)
def test_a_known_table_is_recovered_within_5_percent(name: str, context_ms: float, drift: Drift, seed: int) -> None:
    """3% noise, and a machine that gets twice as slow meanwhile."""
    table = with_context(reference_table(name), context_ms)
    windows = timed(grid(seed, repeats=6), table, drift, 0.03, seed)
    fit = fit_table(windows, PREFILL, key=KEY, source="test")
    assert worst_frac(fit.table, table, windows) < 0.05
    assert fit.table.error_frac_p50 is not None
    assert fit.table.error_frac_p50 < 0.05
    drifted = drift(np.array([window.at_s for window in windows]))
    assert np.median(np.abs(fit.drift_frac / drifted * np.median(drifted) - 1.0)) < 0.05


def test_a_tables_stairs_and_falling_drafts_are_recovered() -> None:
    table = reference_table("avx2").model_copy(
        update={"per_rows_ms": ((1, 0.0), (32, 10.0), (64, 400.0), (192, 500.0))}
    )
    windows = timed(grid(1), table, ramp, 0.01, 1)
    fitted = fit_table(windows, PREFILL, key=KEY, source="test").table
    assert worst_frac(fitted, table, windows) < 0.05
    assert fitted.draft_ms[3][0][1] > fitted.draft_ms[3][-1][1]


def test_without_the_references_drift_would_be_taken_for_work() -> None:
    """What divides it out: the same windows, their references as fast as ever, are not told by any table."""
    table = reference_table("avx2")
    windows = timed(grid(2, repeats=1), table, ramp, 0.0, 2)
    steady = timed(grid(2, repeats=1), table, np.ones_like, 0.0, 2)
    mixed = [calm if window.is_reference else window for window, calm in zip(windows, steady, strict=True)]
    right, wrong = (fit_table(given, PREFILL, key=KEY, source="test").table for given in (windows, mixed))
    assert worst_frac(right, table, windows) < 0.02
    assert worst_frac(wrong, table, windows) > 0.1


def test_a_few_stalls_change_little() -> None:
    table = reference_table("avx2")
    windows = timed(grid(3), table, np.ones_like, 0.02, 3)
    stalled = [place for place in range(5, len(windows), 9) if not windows[place].is_reference]
    for place in stalled:
        windows[place] = replace(windows[place], rest_ms=2 * windows[place].rest_ms)
    fit = fit_table(windows, PREFILL, key=KEY, source="test")
    assert worst_frac(fit.table, table, windows) < 0.05
    assert fit.unseen_error_frac[stalled].max() < -0.2
    assert np.flatnonzero(np.isnan(fit.unseen_error_frac)).tolist() == [0, len(windows) - 1]


def test_prefill_never_falls_and_the_key_is_kept() -> None:
    windows = timed(grid(4), reference_table("amx"), np.ones_like, 0.0, 4)
    table = fit_table(windows, PREFILL, key=KEY, source="here").table
    assert table.prefill_ms == ((8, 20.0), (64, 20.0), (512, 300.0))
    assert (table.key, table.source) == (KEY, "here")


def test_noise_that_hides_the_table_is_refused() -> None:
    windows = timed(grid(5), reference_table("avx2"), np.ones_like, 0.0, 5)
    rng = np.random.default_rng(5)
    noisy = [replace(window, rest_ms=window.rest_ms * float(rng.uniform(0.3, 3.0))) for window in windows]
    with pytest.raises(ReplicaError, match=r"must be told within 15% by a table \(found .*alone on the machine"):
        fit_table(noisy, PREFILL, key=KEY, source="test")


@pytest.mark.parametrize(
    "broken",
    [
        lambda windows: windows[:11],
        lambda windows: [replace(window, is_reference=False) for window in windows],
        lambda windows: [replace(window, requests=4.0) for window in windows],
        lambda windows: [replace(window, is_reference=window.rung == 2) for window in windows],
        lambda windows: [replace(windows[0], rest_ms=0.0), *windows[1:]],
        lambda windows: [replace(windows[0], rest_ms=float("nan")), *windows[1:]],
        lambda windows: [replace(windows[0], draft_ms=-1.0), *windows[1:]],
    ],
    ids=["few", "no references", "one size", "two references", "no time", "nan", "negative"],
)
def test_windows_that_tell_nothing_are_refused(broken: Callable[[list[Window]], list[Window]]) -> None:
    windows = timed(grid(6), reference_table("avx2"), np.ones_like, 0.0, 6)
    with pytest.raises(ReplicaError, match=r"A table of step times needs .* \(found .*\)\. Measure more\."):
        fit_table(broken(windows), PREFILL, key=KEY, source="test")
