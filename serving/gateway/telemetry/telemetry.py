"""Watches requests for the core: notes their phases, and tells spans, metrics and log once when they are over."""

import time
from collections.abc import Callable

import structlog

from sparktier.serving.gateway.core.ask import Ask
from sparktier.serving.gateway.core.observer import Outcome, Phase
from sparktier.serving.gateway.engine_times import EngineTimes
from sparktier.serving.gateway.telemetry.metrics import GatewayMetrics
from sparktier.serving.gateway.telemetry.open_requests import OpenRequests
from sparktier.serving.gateway.telemetry.spans import RequestSpans, Stage

_NS_OF_MS = 1_000_000
_FAILED = 500
_log = structlog.stdlib.get_logger(__name__)


class Telemetry:
    """An observer of all requests; without `spans` none are made. `now_ns` is the time of day."""

    def __init__(
        self, metrics: GatewayMetrics, spans: RequestSpans | None, *, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._metrics = metrics
        self._spans = spans
        self._now_ns = now_ns
        self.requests = OpenRequests()

    def watch(self, ask: Ask) -> "RequestWatch":
        """Return the watch of a request that begins now."""
        self._metrics.began()
        return RequestWatch(ask, self._metrics, self._spans, self._now_ns, self.requests)


class RequestWatch:
    """Sees one request through."""

    def __init__(
        self,
        ask: Ask,
        metrics: GatewayMetrics,
        spans: RequestSpans | None,
        now_ns: Callable[[], int],
        requests: OpenRequests,
    ) -> None:
        self._ask = ask
        self._requests, self._open = requests, requests.began(ask)
        self._metrics = metrics
        self._now_ns = now_ns
        self._begun_ns = now_ns()
        self._reached_ns: dict[Phase, int] = {}
        self._span = None if spans is None else spans.begin(ask.kind.value, ask.traceparent, at_ns=self._begun_ns)

    @property
    def traceparent(self) -> str | None:
        """What the replica's spans are to continue: ours, or the client's where we make none."""
        return self._ask.traceparent if self._span is None else self._span.traceparent

    def reached(self, phase: Phase) -> None:
        """Note that the request has reached `phase`; of a request that was sent twice the last time counts."""
        self._reached_ns[phase] = self._now_ns()
        self._requests.reached(self._open, phase)

    def ended(self, outcome: Outcome) -> None:
        """Tell how it ended."""
        self._requests.ended(self._open, outcome)
        ended_ns = self._now_ns()
        first_token_ms = self._first_token_ms(outcome.times)
        tok_s = None if outcome.times is None else outcome.times.attained_tok_s
        tok_s = None if tok_s is None else round(tok_s, 2)
        self._metrics.ended(
            route=self._ask.kind.value,
            status=outcome.status,
            tier=outcome.tier,
            first_token_ms=first_token_ms,
            user_tok_s=tok_s,
            asked_tier=outcome.asked_tier,
        )
        facts: dict[str, str | int | float | None] = {
            "request_id": self._ask.request_id,
            "engine_id": outcome.engine_id,
            "tenant": self._ask.tenant.name,
            "tier": outcome.tier,
            "asked_tier": outcome.asked_tier,
            "waited_ms": outcome.waited_ms,
            "predicted_wait_ms": outcome.predicted_wait_ms,
            "replica": outcome.replica,
            "code": outcome.code or None,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "first_token_ms": first_token_ms,
            "tok_s": tok_s,
        }
        known = {name: value for name, value in facts.items() if value is not None}
        if self._span is not None:
            attributes = {f"sparktier.{name}": value for name, value in known.items()}
            self._span.end(self._stages(outcome.times, ended_ns), attributes, status=outcome.status, at_ns=ended_ns)
        tell = _log.warning if outcome.status >= _FAILED else _log.info
        took_ms = (ended_ns - self._begun_ns) / _NS_OF_MS
        tell("request", route=self._ask.kind.value, status=outcome.status, took_ms=round(took_ms, 1), **known)

    def _first_token_ms(self, times: EngineTimes | None) -> float | None:
        """Return the time from the request's arrival here to its first token, as the replica saw it where it tells.

        Only durations are added: the clocks of gateway and replica may differ.
        """
        sent_ns = self._reached_ns.get(Phase.SENT)
        if times is not None and times.first_token_ms is not None and sent_ns is not None:
            return round((sent_ns - self._begun_ns) / _NS_OF_MS + times.first_token_ms, 1)
        first_ns = self._reached_ns.get(Phase.FIRST_TOKEN) if self._ask.streams else None
        return None if first_ns is None else round((first_ns - self._begun_ns) / _NS_OF_MS, 1)

    def _stages(self, times: EngineTimes | None, ended_ns: int) -> list[Stage]:
        """Return the stages that the request reached: queue, route, first token and stream as they were here, prefill
        as the replica tells it.
        """
        marks = [("queue", Phase.ADMITTED), ("route", Phase.SENT), ("first_token", Phase.FIRST_TOKEN)]
        stages, begun_ns = [], self._begun_ns
        for name, phase in marks:
            reached_ns = self._reached_ns.get(phase)
            stages.append(Stage(name, begun_ns, ended_ns if reached_ns is None else reached_ns))
            if reached_ns is None:
                break
            begun_ns = reached_ns
        else:
            stages.append(Stage("stream", begun_ns, ended_ns))
        if times is not None and times.prefill_ms is not None and times.first_token_ms is not None:
            arrived_ns = round(times.arrived_at_ms * _NS_OF_MS)
            prefill = (round(arrived_ns + each * _NS_OF_MS) for each in (times.prefill_ms, times.first_token_ms))
            stages.append(Stage("prefill", *prefill))
        return stages
