"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`, and as the last event of a stream.

Knows nothing of what went wrong; turns what SGLang says into the same form, without its paths and Python objects.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from sparktier.configs.errors import REQUEST_ENDED, RequestError

INVALID = "invalid_request_error"
SERVER = "server_error"
OVERLOADED = "rate_limit_error"

_ENGINE_FAILED = "The engine failed on this request. The replica's log says why."
_EVENT_OF_ERROR = b'data: {"error"'
# One entry of what SGLang makes of a pydantic error: "{'type': 'missing', 'loc': ('body', 'a', 0), 'msg': 'Field ...'".
_PYDANTIC_ENTRY = re.compile(r"""'loc': \((.*?)\), 'msg': (?:'([^']*)'|"([^"]*)")""")
_GRAMMAR_SOURCE = re.compile(r"\[\d\d:\d\d:\d\d\] /\S+:\d+: ")
_FAILED_GRAMMAR = re.compile(r"^Failed to compile \w+ grammar: ")
# The fields that bind the output; one of them at most is in force.
_GRAMMAR_FIELDS = ("response_format", "json_schema", "regex", "ebnf", "tools")
_PATH = re.compile(r"(?<![\w:/])/(?:[\w.~-]+/)+[\w.~-]*")


class Refused(RequestError):
    """A request that is answered with a 4xx; `param` is the field at fault.

    `close` ends the connection too, for a client that sends nothing; one that is still sending would lose the answer.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.close = close

    def answer(self) -> JSONResponse:
        """Return the refusal as a response."""
        response = answer(self.status, str(self), kind=INVALID, code=self.code, param=self.param)
        if self.close:
            response.headers["Connection"] = "close"
        return response


def body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(
    status: int,
    message: str,
    *,
    kind: str,
    code: str | None = None,
    param: str | None = None,
    retry_after_s: int | None = None,
) -> JSONResponse:
    """Return an error as a response."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse(body(message, kind=kind, code=code, param=param), status_code=status, headers=headers)


def event(message: str, *, code: str) -> bytes:
    """Return an error as a server-sent event, which OpenAI's clients raise; no `[DONE]` follows it."""
    return _event(body(message, kind=SERVER, code=code))


def grammar_field(asked: Mapping[str, Any]) -> str | None:
    """Return the field of the request `asked` that binds its output by a grammar, if any does."""
    return next((name for name in _GRAMMAR_FIELDS if name in asked), None)


def from_engine(status: int, content: bytes, *, grammar: str | None = None) -> JSONResponse:
    """Return SGLang's error `content` in OpenAI's form; it has the message at the top level, or FastAPI's `detail`.

    `grammar`: the field that an error of the grammar is of.
    """
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = None
    fields = parsed if isinstance(parsed, dict) else {}
    nested = fields.get("error")
    restated = _restated(status, nested if isinstance(nested, dict) else fields, grammar)
    return JSONResponse(restated, status_code=status)


def first_error(events: bytes, *, grammar: str | None = None) -> JSONResponse | None:
    """Return the error that a stream opens with, as the plain response it should have been, or None.

    `grammar`: as in `from_engine`.
    """
    fields = _error_fields(events)
    return JSONResponse(_restated(_status(fields), fields, grammar), status_code=_status(fields)) if fields else None


def restated_events(events: bytes) -> bytes:
    """Return whole server-sent events with SGLang's errors among them in OpenAI's form."""
    if _EVENT_OF_ERROR not in events:
        return events
    return b"".join(_restated_event(item) for item in events.split(b"\n\n") if item)


def _restated_event(item: bytes) -> bytes:
    fields = _error_fields(item)
    return _event(_restated(_status(fields), fields)) if fields else item + b"\n\n"


def _error_fields(events: bytes) -> dict[str, Any]:
    """Return the fields of the error that `events` begin with; empty where they don't."""
    if not events.startswith(_EVENT_OF_ERROR):
        return {}
    fields: dict[str, Any] = json.loads(events.split(b"\n\n")[0][len(b"data: ") :])["error"]
    return fields


def _status(fields: Mapping[str, Any]) -> int:
    code = fields.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _restated(status: int, fields: Mapping[str, Any], grammar: str | None = None) -> dict[str, Any]:
    said = fields.get("message") or fields.get("detail")
    ended = isinstance(said, str) and said.startswith(REQUEST_ENDED)
    if status >= 500:
        message = said if isinstance(said, str) and ended else _ENGINE_FAILED
        return body(message, kind=SERVER, code="request_ended" if ended else "engine_error")
    if grammar and isinstance(said, str) and (ended or _FAILED_GRAMMAR.match(said)):
        cause = _FAILED_GRAMMAR.sub("", said.removeprefix(REQUEST_ENDED))
        return body(f"{grammar}: {_without_internals(cause)}", kind=INVALID, param=grammar)
    message = _without_internals(said) if isinstance(said, str) else f"The engine refused this request ({status})."
    code = "context_length_exceeded" if "context length" in message else None
    return body(message, kind=INVALID, code=code)


def _without_internals(message: str) -> str:
    """Return what SGLang says as a person would: no file of its installation, no Python object, one paragraph."""
    if entries := _PYDANTIC_ENTRY.findall(message):
        return "; ".join(f"{_place(place)}: {single or double}" for place, single, double in entries[:3])
    paragraph = _GRAMMAR_SOURCE.sub("", message).split("\n\n")[0]
    return _PATH.sub("...", " ".join(paragraph.split()))


def _place(python_tuple: str) -> str:
    parts = [part.strip(" '\"") for part in python_tuple.split(",")]
    return ".".join(part for part in parts if part.isdecimal() or (part.isidentifier() and part != "body")) or "body"
