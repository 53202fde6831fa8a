"""Formats the states of a replica's ranks as `sparktier_*` metrics in Prometheus' text form. Pure.

docs/metrics.md lists every metric. SGLang's own metrics are added by the routes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sparktier.serving.engine.telemetry.rank_state import RankState
from sparktier.serving.engine.telemetry.signals import leaders
from sparktier.serving.engine.telemetry.spec_stats import TierStats, acceptance

_QUANTILES = (0.05, 0.5)
Samples = Iterable[tuple[tuple[object, ...], float]]


def exposition(states: Sequence[RankState]) -> bytes:
    """Return the metrics of the replica whose ranks are in `states`, in Prometheus' text form."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(states))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, states: Sequence[RankState]) -> None:
        self._states = states
        self._groups = leaders(states)

    def collect(self) -> Iterator[Metric]:
        """Yield the plan of every rank, which shows ranks that differ, then the figures of each attention group."""
        ranks = [((state.tp_rank,), state) for state in self._states]
        for name, about, field in _PLAN:
            yield _gauge(name, about, ["tp_rank"], [(rank, getattr(state.plan, field)) for rank, state in ranks])
        latches = [(rank, float(state.latched is not None)) for rank, state in ranks]
        yield _gauge("sparktier_latched", "1 while rung 0 holds whatever plans say.", ["tp_rank"], latches)
        yield from self._load()
        yield from self._speed()
        yield from self._speculation()
        yield from self._canary()

    def _load(self) -> Iterator[Metric]:
        by_tier = ["dp_rank", "tier"]
        running, queued = (self._keyed(_of_every_tier(name)) for name in ("running", "queued"))
        unknown = self._each("unknown_tier_requests")
        yield _gauge("sparktier_running_requests", "Requests in a batch.", by_tier, running)
        yield _gauge("sparktier_queued_requests", "Requests that wait.", by_tier, queued)
        for name, about, field in _LOAD:
            yield _gauge(name, about, ["dp_rank"], self._each(field))
        put_back = self._keyed(lambda state: state.retractions)
        yield _counter(
            "sparktier_put_back_requests", "Times that requests were put back into the queue.", by_tier, put_back
        )
        yield _counter("sparktier_unknown_tier_requests", "Served as the default tier.", ["dp_rank"], unknown)

    def _speed(self) -> Iterator[Metric]:
        step_ms = self._keyed(lambda state: state.step_ms)
        users = (
            ((group.dp_rank, tier, quantile), float(np.quantile(speeds, quantile)))
            for group in self._groups
            for tier, speeds in group.speeds.items()
            for quantile in _QUANTILES
        )
        yield _gauge("sparktier_step_ms", "Moving average of a decode step.", ["dp_rank", "rung"], step_ms)
        yield _gauge(
            "sparktier_prefill_frac", "Part of recent time in prefill.", ["dp_rank"], self._each("prefill_frac")
        )
        yield _gauge("sparktier_user_tok_s", "Tokens per second of users.", ["dp_rank", "tier", "quantile"], users)
        met = self._keyed(lambda state: {tier: kept for tier, (kept, _) in state.met.items()})
        judged = self._keyed(lambda state: {tier: ended for tier, (_, ended) in state.met.items()})
        yield _counter("sparktier_met_requests", "Requests that met their promise.", ["dp_rank", "tier"], met)
        yield _counter("sparktier_judged_requests", "Requests with tokens to tell.", ["dp_rank", "tier"], judged)
        drifts = [((group.dp_rank,), group.drift_frac) for group in self._groups if group.drift_frac is not None]
        yield _gauge("sparktier_drift_frac", "Measured over predicted step time.", ["dp_rank"], drifts)

    def _speculation(self) -> Iterator[Metric]:
        by_tier = ["dp_rank", "tier"]
        for name, about, total in _TOTALS:
            yield _counter(name, about, by_tier, self._by_tier(total))
        yield _gauge("sparktier_accepted_length_tokens", "Tokens of a round.", by_tier, self._by_tier(_accepted_length))
        places = (
            ((group.dp_rank, tier, position), frac)
            for group in self._groups
            for tier, stats in group.spec_stats.by_tier.items()
            for position, frac in enumerate(acceptance([stats]))
        )
        yield _gauge("sparktier_acceptance_frac", "Acceptance by place.", ["dp_rank", "tier", "position"], places)
        yield _counter("sparktier_decode_steps", "Decode steps.", ["dp_rank"], self._each("decode_steps"))
        padding = [((group.dp_rank,), group.spec_stats.padding_rows) for group in self._groups]
        yield _counter("sparktier_padding_rows", "Rows of passes that no request brought.", ["dp_rank"], padding)
        yield _counter(
            "sparktier_decode_ms", "Time of decode steps, by part.", ["dp_rank", "part"], self._keyed(_parts)
        )

    def _canary(self) -> Iterator[Metric]:
        reports = [((group.dp_rank,), group.canary) for group in self._groups if group.canary.state != "off"]
        for name, about, field in _CANARY_TOTALS:
            yield _counter(name, about, ["dp_rank"], [(key, getattr(report, field)) for key, report in reports])
        alarmed = [(key, float(report.state == "alarmed")) for key, report in reports]
        level = [(key, report.level_frac) for key, report in reports]
        extreme = [(key, float(_EXTREMES[report.acceptance])) for key, report in reports]
        yield _gauge("sparktier_canary_alarmed", "1 from an alarm until speculation is resumed.", ["dp_rank"], alarmed)
        yield _gauge("sparktier_canary_level_frac", "Evidence for wrong tokens; 1 alarms.", ["dp_rank"], level)
        yield _gauge(
            "sparktier_canary_acceptance_extreme", "1 absurdly high, -1 absurdly low, else 0.", ["dp_rank"], extreme
        )

    def _each(self, field: str) -> Samples:
        return [((group.dp_rank,), getattr(group, field)) for group in self._groups]

    def _keyed(self, read: Callable[[RankState], Mapping[Any, float]]) -> Samples:
        return [((group.dp_rank, key), value) for group in self._groups for key, value in read(group).items()]

    def _by_tier(self, read: Callable[[TierStats], float]) -> Samples:
        return self._keyed(lambda state: {tier: read(stats) for tier, stats in state.spec_stats.by_tier.items()})


def _of_every_tier(name: str) -> Callable[[RankState], Mapping[Any, float]]:
    """Return what reads `name` for every tier in force; a series that ends at zero would leave a gap in a plot."""
    return lambda state: dict.fromkeys(state.plan.tiers, 0.0) | dict(getattr(state, name))


_PLAN = (
    ("sparktier_plan_version", "Version of the plan in force.", "version"),
    ("sparktier_rung", "Rung of the ladder in force; 0 is off.", "rung"),
    ("sparktier_plan_rows", "Most rows that a step may verify; 0 is no bound.", "rows"),
)
_LOAD = (
    ("sparktier_kv_used_frac", "Part of the KV cache in use.", "kv_used_frac"),
    ("sparktier_context_tokens_p50", "Median length of running requests.", "context_tokens_p50"),
)
_CANARY_TOTALS = (
    ("sparktier_canary_scored_tokens", "Emitted tokens that were scored.", "scored_tokens"),
    ("sparktier_canary_far_tokens", "Scored tokens far from the target's choice.", "far_tokens"),
    ("sparktier_canary_score_steps", "Steps that scored tokens.", "score_steps"),
)
_EXTREMES = {"usual": 0, "high": 1, "low": -1}
_TOTALS: tuple[tuple[str, str, Callable[[TierStats], float]], ...] = (
    ("sparktier_rounds", "Steps of each request, summed.", lambda stats: stats.rounds),
    ("sparktier_rows_verified", "Rows that the target verified.", lambda stats: stats.rows),
    ("sparktier_round_tokens", "Tokens that rounds came to.", lambda stats: stats.tokens),
)


def _accepted_length(stats: TierStats) -> float:
    return stats.recent_tokens / stats.recent_rounds


def _parts(state: RankState) -> Mapping[Any, float]:
    """Return the time in each part of decode steps; `overhead` is the rest, with the scheduler's own work."""
    parts = state.spec_stats.phase_ms
    rest = "overhead" if parts else "plain"
    return {**parts, rest: max(0.0, state.decode_ms - sum(parts.values()))}


def _gauge(name: str, about: str, labels: list[str], samples: Samples) -> Metric:
    return _filled(GaugeMetricFamily(name, about, labels=labels), samples)


def _counter(name: str, about: str, labels: list[str], samples: Samples) -> Metric:
    return _filled(CounterMetricFamily(name, about, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: Samples) -> Metric:
    for values, amount in samples:
        family.add_metric([str(value) for value in values], amount)
    return family
