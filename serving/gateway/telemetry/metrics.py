"""The gateway's own `sparktier_gateway_*` metrics. Every label has a bounded number of values.

docs/metrics.md lists every metric.
"""

from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# A client that hung up; no status of HTTP's own.
_HUNG_UP = 499
_STATUSES = frozenset({*(status.value for status in HTTPStatus), _HUNG_UP})
_FIRST_TOKEN_MS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
RELOADED = ("tenants", "issuer_keys", "tls")
_TOK_S = (1, 2, 5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500)


class GatewayMetrics:
    """The metrics of one gateway; `lost_records` tells how many records of use are lost so far, `failed_reloads` how
    often each kind of file could not be read again.
    """

    def __init__(
        self, *, lost_records: Callable[[], int] = lambda: 0, failed_reloads: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sparktier_gateway_requests",
            "Requests that ended.",
            ["route", "status", "tier"],
            registry=self._registry,
        )
        self._downgraded = Counter(
            "sparktier_gateway_downgraded_requests",
            "Requests that another tier served than the one they asked for.",
            ["asked_tier", "tier"],
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "sparktier_gateway_in_flight_requests", "Requests in the gateway.", registry=self._registry
        )
        self._first_token_ms = Histogram(
            "sparktier_gateway_first_token_ms",
            "From a request's arrival to its first token.",
            ["tier"],
            buckets=_FIRST_TOKEN_MS,
            registry=self._registry,
        )
        self._user_tok_s = Histogram(
            "sparktier_gateway_user_tok_s",
            "Tokens per second of a request's users after their first tokens.",
            ["tier"],
            buckets=_TOK_S,
            registry=self._registry,
        )
        self._registry.register(_Losses(lost_records, failed_reloads))

    def began(self) -> None:
        """Count a request that has arrived."""
        self._in_flight.inc()

    def ended(
        self,
        *,
        route: str,
        status: int,
        tier: str,
        first_token_ms: float | None,
        user_tok_s: float | None,
        asked_tier: str | None = None,
    ) -> None:
        """Count a request that is over; `tier` is "" where none was resolved. `asked_tier` is another it asked for."""
        self._in_flight.dec()
        known = status if status in _STATUSES else status // 100 * 100
        self._requests.labels(route, str(known), tier).inc()
        if asked_tier is not None:
            self._downgraded.labels(asked_tier, tier).inc()
        if first_token_ms is not None:
            self._first_token_ms.labels(tier).observe(first_token_ms)
        if user_tok_s is not None:
            self._user_tok_s.labels(tier).observe(user_tok_s)

    def exposition(self) -> str:
        """Return the metrics in Prometheus' text form."""
        return generate_latest(self._registry).decode()


class _Losses(Collector):
    def __init__(self, lost_records: Callable[[], int], failed_reloads: Mapping[str, int]) -> None:
        self._lost_records = lost_records
        self._failed_reloads = failed_reloads

    def collect(self) -> Iterator[Metric]:
        """Yield the counts as they are now."""
        yield CounterMetricFamily(
            "sparktier_gateway_usage_lost_records",
            "Records of use that the disk did not take.",
            value=self._lost_records(),
        )
        reloads = CounterMetricFamily(
            "sparktier_gateway_failed_reloads", "Changed files that could not be read.", labels=["file"]
        )
        # From 0: a first failure would be no increase of a series that isn't there before.
        for file in RELOADED:
            reloads.add_metric([file], self._failed_reloads.get(file, 0))
        yield reloads
