"""What a request shows of itself: spans of its stages below the client's own, bounded labels, and one line of log."""

import io
import json
import logging
import queue
import threading
from collections.abc import Iterator
from logging.handlers import QueueHandler
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from sparktier.serving.gateway.core.ask import Ask, Kind
from sparktier.serving.gateway.core.observer import Outcome, Phase
from sparktier.serving.gateway.engine_times import EngineTimes, take_times
from sparktier.serving.gateway.telemetry import logs as logs_module
from sparktier.serving.gateway.telemetry import spans as spans_module
from sparktier.serving.gateway.telemetry.logs import logging_to
from sparktier.serving.gateway.telemetry.metrics import RELOADED, GatewayMetrics
from sparktier.serving.gateway.telemetry.spans import RequestSpans, spans_to
from sparktier.serving.gateway.telemetry.telemetry import Telemetry
from sparktier.serving.gateway.tenants.directory import Tenant
from sparktier.serving.gateway.tier_resolution import Entitlement, TierAsk

CLIENT_SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROMPT, KEY = "the prompt is a secret", "sk-secret"
MS = 1_000_000
TIMES = EngineTimes(arrived_at_ms=11.0, ended_ms=90.0, prefill_ms=4.0, first_token_ms=20.0, attained_tok_s=25.0)


class Clock:
    """Milliseconds that a test sets, as nanoseconds."""

    now_ms = 0

    def __call__(self) -> int:
        return self.now_ms * MS


def ask(*, stream: bool = True, traceparent: str | None = CLIENT_SPAN) -> Ask:
    tenant = Tenant("acme", Entitlement(frozenset({0}), 0))
    body = {"prompt": PROMPT, "stream": stream, "key": KEY}
    return Ask(Kind.COMPLETION, body, TierAsk(), tenant, "r-1", 0.0, traceparent)


class Watched:
    """A telemetry whose spans stay here."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.clock, self.metrics = Clock(), GatewayMetrics(lost_records=lambda: 3, failed_reloads={"tls": 2})
        self.exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.telemetry = Telemetry(self.metrics, RequestSpans(provider) if sampled else None, now_ns=self.clock)

    def request(self, outcome: Outcome, *phases: tuple[Phase, int], ended_ms: int = 100, **asked: Any) -> None:
        watch = self.telemetry.watch(ask(**asked))
        for phase, at_ms in phases:
            self.clock.now_ms = at_ms
            watch.reached(phase)
        self.clock.now_ms = ended_ms
        watch.ended(outcome)
        self.clock.now_ms = 0

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(self.metrics.exposition())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


PHASES = ((Phase.ADMITTED, 2), (Phase.SENT, 5), (Phase.FIRST_TOKEN, 40))


def test_the_stages_of_a_request_are_below_the_client_s_span() -> None:
    watched = Watched()
    watched.request(Outcome(200, tier="gold", replica=1, completion_tokens=9, engine_id="e-1", times=TIMES), *PHASES)
    spans = watched.spans()
    whole = spans.pop("/v1/completions")
    assert whole.context is not None
    assert f"{whole.context.trace_id:032x}" == CLIENT_SPAN.split("-")[1]
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == CLIENT_SPAN.split("-")[2]
    assert (whole.start_time, whole.end_time) == (0, 100 * MS)
    times = {name: (span.start_time, span.end_time) for name, span in spans.items()}
    assert times == {
        "queue": (0, 2 * MS),
        "route": (2 * MS, 5 * MS),
        "first_token": (5 * MS, 40 * MS),
        "stream": (40 * MS, 100 * MS),
        "prefill": (15 * MS, 31 * MS),
    }
    assert {span.parent and span.parent.span_id for span in spans.values()} == {whole.context.span_id}
    attributes = dict(whole.attributes or {})
    assert attributes["sparktier.tier"] == "gold"
    assert attributes["sparktier.request_id"] == "r-1"
    assert attributes["http.response.status_code"] == 200


def test_the_replica_continues_our_span_or_the_client_s() -> None:
    ours = Watched().telemetry.watch(ask()).traceparent
    assert ours is not None
    assert ours.split("-")[1] == CLIENT_SPAN.split("-")[1]
    assert ours.split("-")[2] != CLIENT_SPAN.split("-")[2]
    assert Watched(sampled=False).telemetry.watch(ask()).traceparent == CLIENT_SPAN


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_request_without_a_span_of_its_client_has_a_trace_of_its_own(traceparent: str | None) -> None:
    watched = Watched()
    watched.request(Outcome(200), traceparent=traceparent)
    assert watched.spans()["/v1/completions"].parent is None


def test_what_a_client_does_not_sample_is_not_sent() -> None:
    watched = Watched()
    watched.request(Outcome(200), *PHASES, traceparent=CLIENT_SPAN[:-1] + "0")
    assert not watched.spans()


def test_a_request_that_fails_early_has_the_stage_that_it_was_in() -> None:
    watched = Watched()
    watched.request(Outcome(503, "replica_lost"), (Phase.ADMITTED, 2))
    spans = watched.spans()
    assert spans.keys() == {"/v1/completions", "queue", "route"}
    assert (spans["route"].start_time, spans["route"].end_time) == (2 * MS, 100 * MS)
    assert not spans["/v1/completions"].status.is_ok


def test_metrics_count_by_route_status_and_tier() -> None:
    watched = Watched()
    in_flight = "sparktier_gateway_in_flight_requests", frozenset[tuple[str, str]]()
    watched.telemetry.watch(ask())
    watched.request(Outcome(200, tier="gold", times=TIMES), *PHASES)
    watched.request(Outcome(200, tier="gold"), *PHASES, stream=False)
    watched.request(Outcome(799, "odd"))
    samples = watched.samples()
    labels = {"route": "/v1/completions", "status": "200", "tier": "gold"}
    assert samples["sparktier_gateway_requests_total", frozenset(labels.items())] == 2
    odd = {"route": "/v1/completions", "status": "700", "tier": ""}
    assert samples["sparktier_gateway_requests_total", frozenset(odd.items())] == 1
    assert samples[in_flight] == 1
    gold = frozenset({("tier", "gold")})
    # 5 ms until it was sent, and 20 ms in the replica; an unstreamed answer alone tells of no first token.
    assert samples["sparktier_gateway_first_token_ms_sum", gold] == 25
    assert samples["sparktier_gateway_first_token_ms_count", gold] == 1
    assert samples["sparktier_gateway_user_tok_s_sum", gold] == 25
    assert samples["sparktier_gateway_usage_lost_records_total", frozenset()] == 3
    reloads = [samples["sparktier_gateway_failed_reloads_total", frozenset({("file", file)})] for file in RELOADED]
    assert reloads == [0, 0, 2]


def test_a_stream_without_the_replica_s_times_has_those_seen_here() -> None:
    watched = Watched()
    watched.request(Outcome(200, tier="gold"), *PHASES)
    assert watched.samples()["sparktier_gateway_first_token_ms_sum", frozenset({("tier", "gold")})] == 40


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    with logging_to(stream):
        yield stream
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    [sender] = [each for each in logging.getLogger().handlers if isinstance(each, QueueHandler)]
    assert isinstance(sender.queue, queue.Queue)
    sender.queue.join()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_line_without_its_prompt(log: io.StringIO) -> None:
    watched = Watched()
    watched.request(Outcome(200, tier="gold", replica=1, completion_tokens=9, engine_id="e-1", times=TIMES), *PHASES)
    watched.request(Outcome(502, "replica_lost"))
    first, second = lines(log)
    assert first.pop("timestamp")
    assert first == {
        "event": "request",
        "level": "info",
        "route": "/v1/completions",
        "status": 200,
        "took_ms": 100.0,
        "request_id": "r-1",
        "engine_id": "e-1",
        "tenant": "acme",
        "tier": "gold",
        "replica": 1,
        "completion_tokens": 9,
        "first_token_ms": 25.0,
        "tok_s": 25.0,
    }
    assert (second["level"], second["code"]) == ("warning", "replica_lost")
    spans = "".join(span.to_json() for span in watched.spans().values())
    for text in (log.getvalue(), spans, watched.metrics.exposition()):
        assert PROMPT not in text
        assert KEY not in text


def test_records_of_the_library_become_lines_too(log: io.StringIO) -> None:
    logging.getLogger("sparktier.serving.gateway").warning("%s is lost", "it")
    logging.getLogger("elsewhere").info("not shown")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("elsewhere").exception("failed")
    first, second = lines(log)
    assert (first["event"], first["level"]) == ("it is lost", "warning")
    assert "ValueError: broken" in second["exception"]


def test_a_reader_that_is_gone_holds_nothing_up(log: io.StringIO) -> None:
    log.close()
    for _ in range(100):
        logging.getLogger("sparktier").warning("unread")


def test_a_reader_that_is_stuck_holds_no_request_and_no_stop_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "_MOST_WAITING", 3)
    monkeypatch.setattr(logs_module, "_LONGEST_STOP_S", 0.05)
    reads = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            reads.wait()
            return super().write(text)

    stream = Stuck()
    with logging_to(stream):
        for number in range(20):
            logging.getLogger("sparktier").warning("line %d", number)
    structlog.reset_defaults()
    assert not stream.getvalue()
    reads.set()


class Terminal(io.StringIO):
    """What says that a person reads it."""

    def isatty(self) -> bool:
        return True


def failed_with(prompt: str) -> None:
    """Log the failure of a function that had `prompt` at hand."""
    try:
        json.loads("not JSON")
    except ValueError:
        logging.getLogger("sparktier").exception("it has failed")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_a_failure_shows_no_local_variables(stream: io.StringIO) -> None:
    with logging_to(stream):
        failed_with(PROMPT)
    structlog.reset_defaults()
    assert "JSONDecodeError" in stream.getvalue()
    assert PROMPT not in stream.getvalue()


def test_a_terminal_gets_words() -> None:
    stream = Terminal()
    with logging_to(stream):
        logging.getLogger("sparktier").warning("it is lost")
    structlog.reset_defaults()
    assert "it is lost" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_a_collector_that_is_away_holds_no_stop_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans_module, "_LONGEST_CLOSE_S", 0.05)
    away, ends = threading.Event(), threading.Event()
    provider = TracerProvider(shutdown_on_exit=False)

    def shutdown() -> None:
        away.wait()
        ends.set()

    monkeypatch.setattr(provider, "shutdown", shutdown)
    RequestSpans(provider).close()
    assert not ends.is_set()
    away.set()
    assert ends.wait(20)


def test_without_a_collector_there_are_no_spans() -> None:
    assert spans_to(None) is None


@pytest.mark.parametrize("told", [None, 7, {"arrived_at_ms": 1}, {"arrived_at_ms": 1, "ended_ms": 2, "more": 3}])
def test_times_that_are_none_are_taken_out_and_left(told: object) -> None:
    message = {"choices": [], "sparktier": told}
    assert take_times(message) is None
    assert message == {"choices": []}
