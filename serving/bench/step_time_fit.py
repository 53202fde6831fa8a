"""From measured windows of steps to a table of step times: a robust fit without drift, and its error on unseen windows.

Pure. A window takes (base + by requests + by rows + the rung's draft + context) times how slow the machine is then.
The reference windows around it, always the same work, tell that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from sparktier.cluster.arrays import Floats
from sparktier.configs.errors import ReplicaError
from sparktier.configs.step_times import Curve, StepTimeTable, TableKey, curve_ms

_REWEIGHTINGS = 5
# Residuals beyond this share of a time count less, one by one: a neighbour's work, a garbage collection.
_HUBER_FRAC = 0.05
# Weight of "the slope goes on" against one window, so that slopes that no window tells are those of their neighbours.
_SMOOTHING = 0.005
_LEAST_WINDOWS = 12
# Windows that the fit had not seen must be told as well as this; the reference machines had 0.05 at most.
_MOST_ERROR_FRAC_P50 = 0.15


@dataclass(frozen=True)
class Window:
    """Means over the steps of one window, and when it was."""

    at_s: float
    rung: int
    requests: float
    rows: float
    """Of a pass, anchors included."""
    context_tokens: float
    """Of KV that all requests of a step read."""
    draft_ms: float
    """Drafting and keeping the draft's KV."""
    rest_ms: float
    """All else of a step."""
    is_reference: bool

    @property
    def step_ms(self) -> float:
        """The whole step."""
        return self.draft_ms + self.rest_ms


class Fit(NamedTuple):
    """A table and what it says of the windows it was fitted to."""

    table: StepTimeTable
    drift_frac: Floats
    """[windows] how slow the machine was, over the median of the run."""
    unseen_error_frac: Floats
    """[windows] (predicted - measured) / measured, the window left out of the fit. NaN where it alone has its rung, and
    outside of the first and the last reference, which the fit doesn't read."""


class _Parts(NamedTuple):
    base_ms: float
    per_context_ms: float
    per_requests_ms: Curve
    per_rows_ms: Curve
    draft_ms: Mapping[int, Curve]


def fit_table(windows: Sequence[Window], prefill_ms: Curve, *, key: TableKey, source: str) -> Fit:
    """Return the table that explains `windows`, in their order of time, and `prefill_ms` beside it.

    Raises:
        ReplicaError: the windows are too few, tell nothing of requests or drift, or the table doesn't predict them.
    """
    _require_enough(windows)
    # 1. The drift, by the references, and the parts, by what is left when it is divided out.
    drift = _drift(windows)
    references = [window.at_s for window in windows if window.is_reference]
    inside = np.array([references[0] < window.at_s < references[-1] for window in windows])
    told = [window for window, is_inside in zip(windows, inside, strict=True) if is_inside]
    parts = _parts(told, drift[inside])
    # 2. The error on windows that the fit has not seen.
    errors = np.full(len(windows), np.nan)
    errors[inside] = [_unseen_error_frac(told, drift[inside], place) for place in range(len(told))]
    known = np.abs(errors[np.isfinite(errors)])
    p50, p90 = np.quantile(known, [0.5, 0.9])
    if p50 > _MOST_ERROR_FRAC_P50:
        raise ReplicaError(
            f"Steps must be told within {_MOST_ERROR_FRAC_P50:.0%} by a table (found {p50:.0%} at the median, of "
            f"{len(known)} windows). Run `sparktier profile` alone on the machine, with longer windows."
        )
    table = StepTimeTable(
        key=key,
        source=source,
        base_ms=round(parts.base_ms, 4),
        per_requests_ms=parts.per_requests_ms,
        per_rows_ms=parts.per_rows_ms,
        draft_ms=parts.draft_ms,
        per_context_ms=round(parts.per_context_ms, 6),
        prefill_ms=_never_falling(prefill_ms),
        error_frac_p50=round(float(p50), 4),
        error_frac_p90=round(float(p90), 4),
    )
    return Fit(table, drift, errors)


def predicted_ms(table: StepTimeTable, window: Window) -> float:
    """Return what `table` says of a window, on the machine as it was at the median of the run."""
    parts = _Parts(table.base_ms, table.per_context_ms, table.per_requests_ms, table.per_rows_ms, table.draft_ms)
    return _predicted_ms(parts, window)


def _require_enough(windows: Sequence[Window]) -> None:
    sizes = {round(window.requests) for window in windows}
    references = [window for window in windows if window.is_reference]
    works = {(window.rung, round(window.requests)) for window in references}
    wrong = [window for window in windows if not (0 < window.rest_ms < np.inf and 0 <= window.draft_ms < np.inf)]
    if len(windows) < _LEAST_WINDOWS or len(sizes) < 2 or len(references) < 2 or len(works) != 1 or wrong:
        raise ReplicaError(
            f"A table of step times needs {_LEAST_WINDOWS} windows or more of two or more batch sizes, two or more "
            f"references of the same work among them, each with a time (found {len(windows)}, {len(sizes)}, "
            f"{len(references)} of {len(works)} kinds, and {len(wrong)} without). Measure more."
        )


def _drift(windows: Sequence[Window]) -> Floats:
    """[windows] how slow the machine was: by the references before and after, over the median of all references.

    A reference's own drift is told by the others, so that its time remains something to explain.
    """
    references = [window for window in windows if window.is_reference]
    usual_ms = np.median([reference.step_ms for reference in references])
    log_drift = []
    for window in windows:
        told_by = [reference for reference in references if reference is not window]
        at = [reference.at_s for reference in told_by]
        log_drift.append(np.interp(window.at_s, at, [np.log(reference.step_ms / usual_ms) for reference in told_by]))
    drift: Floats = np.exp(log_drift)
    return drift


def _parts(windows: Sequence[Window], drift: Floats) -> _Parts:
    """Fit all parts to windows with the drift divided out."""
    requests = np.array([window.requests for window in windows])
    rows = np.array([window.rows for window in windows])
    context = np.array([window.context_tokens for window in windows]) / 1000.0
    rest = np.array([window.rest_ms for window in windows]) / drift
    by_requests, by_rows = _knots(requests), _knots(rows)
    columns = [np.ones(len(windows)), context, *_pieces(requests, by_requests), *_pieces(rows, by_rows)]
    slopes = _robust_slopes(np.stack(columns, axis=1), rest, [len(by_requests) - 1, len(by_rows) - 1])
    base_ms, per_context_ms = float(slopes[0]), float(slopes[1])
    per_requests = _curve(by_requests, slopes[2 : 1 + len(by_requests)])
    per_rows = _curve(by_rows, slopes[1 + len(by_requests) :])
    drafts = {
        rung: _draft_curve(windows, drift, rung, per_requests) for rung in sorted({window.rung for window in windows})
    }
    return _Parts(max(base_ms, 1e-3), per_context_ms, per_requests, per_rows, drafts)


def _knots(counts: Floats) -> list[int]:
    """Where a curve may bend: the powers of two between the least and the greatest count, and these two."""
    least, most = max(1, int(np.floor(counts.min()))), max(2, int(np.ceil(counts.max())))
    powers = [2**power for power in range(most.bit_length()) if least < 2**power < most]
    # A bend close to the last point has hardly a window to tell its last slope.
    return [least, *(power for power in powers if 1.25 * power < most), most]


def _pieces(counts: Floats, knots: Sequence[int]) -> list[Floats]:
    """For each piece between knots, how much of it lies below each count; the last piece goes on."""
    ends = [*knots[1:-1], np.inf]
    return [np.clip(counts, start, end) - start for start, end in zip(knots, ends, strict=False)]


def _robust_slopes(columns: Floats, times_ms: Floats, pieces: Sequence[int]) -> Floats:
    """Slopes >= 0 [columns] with least relative residuals, large ones counting by their size instead of its square."""
    relative = columns / times_ms[:, None]
    smoothing = _smoothing(columns, float(np.median(times_ms)), pieces)
    weight = np.ones(len(times_ms))
    for _ in range(_REWEIGHTINGS):
        design = np.concatenate((relative * weight[:, None], smoothing))
        slopes: Floats = nnls(design, np.concatenate((weight, np.zeros(len(smoothing)))))[0]
        residual = np.abs(relative @ slopes - 1.0)
        weight = np.sqrt(np.minimum(1.0, _HUBER_FRAC / np.maximum(residual, 1e-12)))
    return slopes


def _smoothing(columns: Floats, usual_ms: float, pieces: Sequence[int]) -> Floats:
    """Rows that hold a slope to the one before it, within each curve, in units of a relative residual."""
    rows, first = [], 2
    for count in pieces:
        reach = columns[:, first : first + count].sum(axis=1).max()
        for place in range(first, first + count - 1):
            row = np.zeros(columns.shape[1])
            row[place], row[place + 1] = -1.0, 1.0
            rows.append(_SMOOTHING * reach / usual_ms * row)
        first += count
    return np.array(rows).reshape(len(rows), columns.shape[1])


def _curve(knots: Sequence[int], slopes: Floats) -> Curve:
    total, points = 0.0, [(knots[0], 0.0)]
    for (start, end), slope in zip(pairwise(knots), slopes, strict=True):
        total += float(slope) * (end - start)
        points.append((end, round(total, 4)))
    return tuple(points)


def _draft_curve(windows: Sequence[Window], drift: Floats, rung: int, per_requests: Curve) -> Curve:
    """Medians by requests of what a rung's draft took, raised where a step with more requests would be shorter."""
    taken: dict[int, list[float]] = {}
    for window, slow in zip(windows, drift, strict=True):
        if window.rung == rung:
            taken.setdefault(max(1, round(window.requests)), []).append(window.draft_ms / slow)
    points = [(size, float(np.median(times))) for size, times in sorted(taken.items())]
    # More requests may make a draft shorter, as long as the step as a whole gets longer.
    counts = sorted({*(size for size, _ in points), *(count for count, _ in per_requests)})
    least, curve = 0.0, []
    for count in counts:
        least = max(least, curve_ms(per_requests, count) + curve_ms(tuple(points), count))
        curve.append((count, round(least - curve_ms(per_requests, count), 4)))
    return tuple(curve)


def _never_falling(curve: Curve) -> Curve:
    highest = np.maximum.accumulate([ms for _, ms in curve])
    return tuple((count, round(float(ms), 4)) for (count, _), ms in zip(curve, highest, strict=True))


def _predicted_ms(parts: _Parts, window: Window) -> float:
    time_ms = parts.base_ms + parts.per_context_ms * window.context_tokens / 1000.0
    time_ms += curve_ms(parts.per_requests_ms, window.requests) + curve_ms(parts.per_rows_ms, window.rows)
    return time_ms + curve_ms(parts.draft_ms[window.rung], window.requests)


def _unseen_error_frac(windows: Sequence[Window], drift: Floats, place: int) -> float:
    left_out = windows[place]
    others = [window for number, window in enumerate(windows) if number != place]
    if left_out.rung not in {window.rung for window in others}:
        return float("nan")
    parts = _parts(others, np.delete(drift, place))
    return float(_predicted_ms(parts, left_out) * drift[place] / left_out.step_ms - 1.0)
