"""The spans of one request: one from its arrival to its end, and its stages below it, never one for each chunk.

Stages are sent once the request is over, from times that were noted meanwhile.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_HEADER = "traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()
_FAILED = 500
# A stop has little time, and a collector that is away is asked again for a minute.
_LONGEST_CLOSE_S = 1.0
# The exporter's own complaints would fill the log while a collector is away.
logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)


class Stage(NamedTuple):
    """A part of a request's time."""

    name: str
    begun_ns: int
    ended_ns: int


class RequestSpans:
    """Makes the spans of requests."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("sparktier.gateway")

    def begin(self, route: str, traceparent: str | None, *, at_ns: int) -> "RequestSpan":
        """Begin the span of a request, below the client's own where `traceparent` names one."""
        parent = _PROPAGATOR.extract({} if traceparent is None else {_HEADER: traceparent})
        span = self._tracer.start_span(route, parent, SpanKind.SERVER, start_time=at_ns)
        return RequestSpan(self, span)

    def send(self, span: Span, stages: Sequence[Stage]) -> None:
        """Send `stages` below `span`."""
        context = set_span_in_context(span)
        for stage in stages:
            part = self._tracer.start_span(stage.name, context, start_time=stage.begun_ns)
            part.end(max(stage.begun_ns, stage.ended_ns))

    def close(self) -> None:
        """Send what waits, unless the collector takes too long."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_LONGEST_CLOSE_S)


class RequestSpan:
    """The span of one request."""

    def __init__(self, spans: RequestSpans, span: Span) -> None:
        self._spans = spans
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span))
        self.traceparent = carrier[_HEADER]

    def end(
        self, stages: Sequence[Stage], attributes: Mapping[str, str | int | float], *, status: int, at_ns: int
    ) -> None:
        """End the span with its stages."""
        self._span.set_attributes({**attributes, "http.response.status_code": status})
        if status >= _FAILED:
            self._span.set_status(Status(StatusCode.ERROR))
        self._spans.send(self._span, stages)
        self._span.end(at_ns)


def spans_to(endpoint: str | None) -> RequestSpans | None:
    """Return the maker of spans for the collector at `endpoint`; None makes none."""
    if endpoint is None:
        return None
    resource = Resource.create({"service.name": "sparktier-gateway"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return RequestSpans(provider)
