"""Tells the gateway, within each answer, when the replica took the request, began it, and had its first and last token.

SGLang's answers have no place for that. The key `sparktier` is put into a whole answer, and into an event of its own
before the last ones of a stream; the gateway takes it out.
"""

from collections.abc import Sequence

from pydantic_core import to_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparktier.configs.contracts.ended import REQUEST_ID_HEADER, EndedRequest
from sparktier.serving.engine.telemetry.ended_requests import EndedRequests, attained_tok_s

# Only the last events have no choices: details and usage, once every choice has ended.
_LAST_EVENTS = b'"choices":[]'
_OK = 200


class AnswerTimes:
    """Passes requests on to `app`, and adds to the answers of those that have the gateway's id in a header."""

    def __init__(self, app: ASGIApp, *, ended: EndedRequests) -> None:
        self._app = app
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        request_id = Headers(scope=scope).get(REQUEST_ID_HEADER) if scope["type"] == "http" else None
        if request_id is None:
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, self._ended, request_id)
        await self._app(scope, receive, answer.send)


class _Answer:
    """One answer on its way; the start of a whole one waits for its content, whose length changes."""

    def __init__(self, send: Send, ended: EndedRequests, request_id: str) -> None:
        self._send = send
        self._ended = ended
        self._request_id = request_id
        self._start: Message | None = None
        self._awaits_last_events = False

    async def send(self, message: Message) -> None:
        """Send `message` on, with the times where they belong."""
        if message["type"] == "http.response.start":
            kind = Headers(raw=list(message["headers"])).get("content-type", "")
            if message["status"] == _OK and kind.startswith("application/json"):
                self._start = message
                return
            self._awaits_last_events = kind.startswith("text/event-stream")
        elif self._start is not None:
            message = self._with_times(self._start, message)
            await self._send(self._start)
            self._start = None
        elif self._awaits_last_events and _LAST_EVENTS in message.get("body", b""):
            self._awaits_last_events = False
            if times := self._times():
                message = {**message, "body": b'data: {"choices":[],' + times + b"}\n\n" + message["body"]}
        await self._send(message)

    def _with_times(self, start: Message, message: Message) -> Message:
        body = message.get("body", b"")
        if message.get("more_body") or not body.endswith(b"}") or not (times := self._times()):
            return message
        body = body[:-1] + b"," + times + b"}"
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
        return {**message, "body": body}

    def _times(self) -> bytes:
        """Return the key with its value, or nothing where nothing of the request has ended."""
        found = self._ended.of(self._request_id)
        return b'"sparktier":' + to_json(times_of(found)) if found else b""


def times_of(ended: Sequence[EndedRequest]) -> dict[str, float]:
    """Return when a request arrived, and after how many milliseconds it reached each stage; of several users, the
    first to be prefilled and to get a token, and the last to end.
    """
    arrived_ms = min(one.arrived_at_ms for one in ended)
    waits = [one.arrived_at_ms - arrived_ms + one.queue_ms for one in ended if one.queue_ms is not None]
    firsts = [
        one.arrived_at_ms - arrived_ms + one.queue_ms + one.prefill_ms
        for one in ended
        if one.queue_ms is not None and one.prefill_ms is not None and one.completion_tokens
    ]
    times = {"arrived_at_ms": arrived_ms, "ended_ms": max(one.ended_at_ms for one in ended) - arrived_ms}
    found = {"prefill_ms": min(waits, default=None), "first_token_ms": min(firsts, default=None)}
    found["attained_tok_s"] = attained_tok_s(ended)
    return times | {name: value for name, value in found.items() if value is not None}
