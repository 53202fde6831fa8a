"""What a step of a replica costs: the measured table, priced at the rows that really run, times one drift factor.

Pure. The form is that of SGLang's `SpsAdditiveCostTable` (srt/speculative/dspark_components/dspark_sps.py), with the
draft of each rung and context added and with times that go on rising beyond what was measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from sparktier.cluster.arrays import Floats, Ints
from sparktier.configs.errors import ArtifactError
from sparktier.configs.step_times import Curve, StepTimeTable, curve_ms

_LEAST_DRIFT, _MOST_DRIFT = 0.25, 4.0
# One step moves the drift by this share of what it was off: some 20 steps to follow a change.
_DRIFT_GAIN = 0.05
# One step counts as at most this many times too slow or too fast: a stall of seconds says nothing of the machine.
_MOST_OFF = 2.0


@dataclass(frozen=True)
class StepTimeModel:
    """The table of a deployment, and how much slower than the table its machine is of late."""

    table: StepTimeTable
    drift_frac: float = 1.0
    """Measured over predicted, 0.25 to 4. It multiplies every time below."""

    def filled(self, rows: Ints) -> Ints:
        """Return the rows that the engine runs for passes of `rows` [n]: the next bucket; beyond the last, as many."""
        if not self.table.key.row_buckets:
            return rows
        buckets = np.array(self.table.key.row_buckets, dtype=np.int64)
        place = np.searchsorted(buckets, rows)
        return np.where(place < len(buckets), buckets[np.minimum(place, len(buckets) - 1)], rows)

    def totals(self, *, requests: int, most_rows: int) -> Ints:
        """Return the totals worth comparing, rising: `most_rows`, and every bucket from `requests` up to it.

        Other totals cost as much as the bucket they are filled up to. `requests` is the least total: a row for each.
        """
        most_rows = max(requests, most_rows)
        if not self.table.key.row_buckets:
            return np.arange(requests, most_rows + 1)
        buckets = np.array(self.table.key.row_buckets, dtype=np.int64)
        last = min(int(buckets[-1]), most_rows)
        inside = buckets[np.searchsorted(buckets, requests) : np.searchsorted(buckets, last)]
        return np.concatenate((inside, np.arange(max(requests, last), most_rows + 1)))

    def step_ms(self, *, rung: int, requests: int, rows: Ints, context_tokens: int = 0) -> Floats:
        """Return the time [n] of one step for each total of `rows` [n].

        Args:
            rung: what is drafted.
            requests: requests in the step.
            rows: rows of the verify pass, anchors included.
            context_tokens: tokens of KV that all requests together read.

        Raises:
            ArtifactError: the table has no such rung.
        """
        fixed_ms = self.table.base_ms + curve_ms(self.table.per_requests_ms, requests)
        fixed_ms += curve_ms(self._draft(rung), requests) + self.table.per_context_ms * context_tokens / 1000.0
        return self.drift_frac * (fixed_ms + _curve_ms(self.table.per_rows_ms, self.filled(rows)))

    def prefill_ms(self, tokens: int) -> float:
        """Return the time of a prefill step over `tokens` prompt tokens; none takes none."""
        return self.drift_frac * curve_ms(self.table.prefill_ms, tokens) if tokens > 0 else 0.0

    def seen(self, *, predicted_ms: float, took_ms: float) -> "StepTimeModel":
        """Return the model after a step took `took_ms` for which this model said `predicted_ms`.

        The drift follows slowly, in equal steps of its logarithm. Times that are no positive numbers change nothing.
        """
        if not (0 < predicted_ms < math.inf and 0 < took_ms < math.inf):
            return self
        off = min(max(took_ms / predicted_ms, 1.0 / _MOST_OFF), _MOST_OFF)
        drift_frac = self.drift_frac * off**_DRIFT_GAIN
        return replace(self, drift_frac=min(max(drift_frac, _LEAST_DRIFT), _MOST_DRIFT))

    def to_sps(self, *, rung: int, most_requests: int, most_rows: int) -> dict[str, float | list[int] | list[float]]:
        """Return this model on one rung as the JSON of SGLang's `SpsAdditiveCostTable`, which times in seconds.

        SGLang's table is flat beyond its probes, so it reaches to `most_requests` and `most_rows`. It knows no context.
        """
        table, draft = self.table, self._draft(rung)
        requests = _probes([count for count, _ in (*table.per_requests_ms, *draft)], most_requests)
        buckets = table.key.row_buckets
        # A pass of one row more than a bucket costs as much as the next bucket.
        edges = [count + extra for count in buckets for extra in (0, 1)]
        rows = _probes([*edges, *(count for count, _ in table.per_rows_ms)], most_rows)
        by_rows = _curve_ms(table.per_rows_ms, self.filled(np.array(rows, dtype=np.int64)))
        by_requests = [curve_ms(table.per_requests_ms, count) + curve_ms(draft, count) for count in requests]
        second_frac = self.drift_frac / 1000.0
        return {
            "bias_seconds": table.base_ms * second_frac,
            "bs_probes": requests,
            "alpha_seconds": [ms * second_frac for ms in by_requests],
            "m_probes": rows,
            "theta_seconds": (by_rows * second_frac).tolist(),
        }

    def _draft(self, rung: int) -> Curve:
        drafts: Mapping[int, Curve] = self.table.draft_ms
        if rung not in drafts:
            raise ArtifactError(
                f"step times of {self.table.key.device}: need the draft's time on rung {rung} (found rungs "
                f"{', '.join(map(str, sorted(drafts)))}). Measure them again with `sparktier profile`."
            )
        return drafts[rung]


def _curve_ms(curve: Curve, counts: Ints) -> Floats:
    """`curve_ms` at each of `counts` [n]."""
    at, ms, slope = _line(curve)
    times: Floats = np.interp(counts, at, ms) + slope * np.maximum(counts - at[-1], 0.0)
    return times


@lru_cache(maxsize=64)
def _line(curve: Curve) -> tuple[Floats, Floats, float]:
    """A curve's counts and times [points], and how steep it is beyond the last: asked for at every step."""
    at, ms = np.array(curve).T.copy()
    return at, ms, max(0.0, (ms[-1] - ms[-2]) / (at[-1] - at[-2])) if len(at) > 1 else 0.0


def _probes(counts: list[int], most: int) -> list[int]:
    """The counts from 1 to `most` at which a line has to be given, these two included."""
    return sorted({1, most, *(count for count in counts if 1 <= count <= most)})
