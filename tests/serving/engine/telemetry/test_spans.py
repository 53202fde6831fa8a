"""Spans of a step: its parts below it, where and as long as they ran; and none without a collector."""

from types import SimpleNamespace

import pytest
import torch
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sparktier.serving.engine.telemetry.spans import StepSpans, spans_of_rank
from sparktier.serving.engine.telemetry.step_phases import Phases


def test_a_step_has_its_parts_below_it() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    phases = Phases(torch.device("cpu"))
    for part in ("draft", "verify"):
        with phases.of(part):
            torch.ones(64, 64).sum()
    StepSpans(provider).step(phases, {"rung": 2, "rows": 9})
    *parts, whole = exporter.get_finished_spans()
    assert (whole.name, dict(whole.attributes or {})) == ("decode", {"rung": 2, "rows": 9})
    assert whole.parent is None
    assert [part.name for part in parts] == ["draft", "verify"]
    assert all(part.parent and part.parent.span_id == whole.context.span_id for part in parts)
    spans_ms = phases.spans_ms()
    for part in parts:
        begun_ms, ended_ms = ((at - phases.started_ns) / 1e6 for at in (part.start_time, part.end_time))
        assert (begun_ms, ended_ms) == pytest.approx(spans_ms[part.name], abs=1e-3)
    assert whole.start_time == phases.started_ns
    assert whole.end_time == parts[-1].end_time


def request(custom_params: object) -> SimpleNamespace:
    return SimpleNamespace(sampling_params=SimpleNamespace(custom_params=custom_params))


def test_a_step_is_linked_to_the_spans_of_the_requests_in_it() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    span = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
    traces: list[object] = [f"{span}1", f"{span}0", None, 7, "nonsense"]
    requests = [request({"sparktier_trace": trace}) for trace in traces]
    for _ in range(2):
        phases = Phases(torch.device("cpu"))
        phases.requests = [*requests, request(None), request({})]
        StepSpans(provider).step(phases, {})
    for whole in exporter.get_finished_spans():
        [link] = whole.links
        assert f"{link.context.trace_id:032x}-{link.context.span_id:016x}" == span[3:-2]


def test_without_a_collector_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, raising=False)
    assert spans_of_rank(0) is None
