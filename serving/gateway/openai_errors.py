"""Errors in the form that OpenAI's clients expect, `{"error": {message, type, param, code}}`, ours and SGLang's.

In a stream they are the last event.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from sparktier.configs.errors import REQUEST_ENDED
from sparktier.serving.gateway.engine_refusals import refusal
from sparktier.serving.gateway.refused import Refused

INVALID = "invalid_request_error"
SERVER = "server_error"
OVERLOADED = "rate_limit_error"

_ENGINE_FAILED = "The engine failed on this request. The replica's log says why."
_EVENT_OF_ERROR = b'data: {"error"'


def refused(error: Refused) -> JSONResponse:
    """Return a refusal as a response."""
    kind = OVERLOADED if error.status == 429 else INVALID
    message = str(error)
    response = answer(
        error.status, message, kind=kind, code=error.code, param=error.param, retry_after_s=error.retry_after_s
    )
    if error.close:
        response.headers["Connection"] = "close"
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
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


def from_engine(status: int, content: bytes, *, asked: Mapping[str, Any]) -> JSONResponse:
    """Return SGLang's error `content` in OpenAI's form; it has the message at the top level, or FastAPI's `detail`.

    `asked` is the request that it refuses.
    """
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = None
    fields = parsed if isinstance(parsed, dict) else {}
    nested = fields.get("error")
    restated = _restated(status, nested if isinstance(nested, dict) else fields, asked)
    return JSONResponse(restated, status_code=status)


def first_error(events: bytes, *, asked: Mapping[str, Any]) -> JSONResponse | None:
    """Return the error that a stream opens with, as the plain response it should have been, or None.

    `asked`: as in `from_engine`.
    """
    fields = _error_fields(events)
    return JSONResponse(_restated(_status(fields), fields, asked), status_code=_status(fields)) if fields else None


def restated_events(events: bytes) -> bytes:
    """Return whole server-sent events with SGLang's errors among them in OpenAI's form."""
    if _EVENT_OF_ERROR not in events:
        return events
    return b"".join(_restated_event(item) for item in events.split(b"\n\n") if item)


def _restated_event(item: bytes) -> bytes:
    fields = _error_fields(item)
    return _event(_restated(_status(fields), fields, {})) if fields else item + b"\n\n"


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


def _restated(status: int, fields: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    said = fields.get("message") or fields.get("detail")
    ended = isinstance(said, str) and said.startswith(REQUEST_ENDED)
    if status >= 500:
        message = said if isinstance(said, str) and ended else _ENGINE_FAILED
        return body(message, kind=SERVER, code="request_ended" if ended else "engine_error")
    found = refusal(said, asked=asked) if isinstance(said, str) else None
    if found is None:
        return body(f"The engine refused this request ({status}).", kind=INVALID, code="invalid_request")
    return body(found.message, kind=INVALID, code=found.code, param=found.param)
