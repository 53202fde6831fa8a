"""Sends a span for each decode step and its parts to an OpenTelemetry collector, linked to the requests in the step.

Spans are made after the step from times that are measured anyway; a background thread sends them.
"""

import os
from collections.abc import Mapping
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sparktier.configs.plan_keys import TRACE_PARAM
from sparktier.serving.engine.telemetry.step_phases import Phases

_PROPAGATOR = TraceContextTextMapPropagator()


class StepSpans:
    """The spans of one rank."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("sparktier.speculation")

    def step(self, phases: Phases, attributes: Mapping[str, int]) -> None:
        """Send the step that `phases` measured; on a GPU its parts are timed by the GPU, from the launch on."""
        parts = phases.spans_ms()
        end_ms = max((ended for _, ended in parts.values()), default=0.0)
        links = [Link(span) for request in phases.requests if (span := _span_of(request)).trace_flags.sampled]
        whole = self._tracer.start_span("decode", start_time=phases.started_ns, attributes=attributes, links=links)
        for name, (begun_ms, ended_ms) in parts.items():
            start_ns = phases.started_ns + int(begun_ms * 1e6)
            part = self._tracer.start_span(name, set_span_in_context(whole), start_time=start_ns)
            part.end(phases.started_ns + int(ended_ms * 1e6))
        whole.end(phases.started_ns + int(end_ms * 1e6))


def _span_of(request: Any) -> SpanContext:
    """Return the gateway's span of SGLang's `request`; one that isn't valid where it has none."""
    known: SpanContext | None = getattr(request, "sparktier_span", None)
    if known is None:
        params = request.sampling_params.custom_params
        told = params.get(TRACE_PARAM) if isinstance(params, Mapping) else None
        carrier = {"traceparent": told} if isinstance(told, str) else {}
        # Kept on the request: it is in many steps.
        known = request.sparktier_span = get_current_span(_PROPAGATOR.extract(carrier)).get_span_context()
    return known


def spans_of_rank(rank: int) -> StepSpans | None:
    """Return the sender of spans of `rank`, or None where the environment names no collector."""
    if OTEL_EXPORTER_OTLP_TRACES_ENDPOINT not in os.environ:
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": "sparktier-engine", "sparktier.rank": rank}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return StepSpans(provider)
