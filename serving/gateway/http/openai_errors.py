"""Errors in the form that OpenAI's clients expect, `{"error": {message, type, param, code}}`.

In a stream they are the last event.
"""

from typing import Any

from pydantic_core import to_json

from sparktier.serving.gateway.refused import Refused

INVALID = "invalid_request_error"
SERVER = "server_error"
OVERLOADED = "rate_limit_error"


def body(error: Refused) -> dict[str, Any]:
    """Return the body of an error."""
    kind = SERVER if error.status >= 500 else OVERLOADED if error.status == 429 else INVALID
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def headers(error: Refused) -> dict[str, str]:
    """Return the headers of its answer."""
    found: dict[str, str] = {}
    if error.retry_after_s is not None:
        found["Retry-After"] = str(error.retry_after_s)
    if error.close:
        found["Connection"] = "close"
    if error.status == 401:
        found["WWW-Authenticate"] = "Bearer"
    return found


def event(error: Refused) -> bytes:
    """Return an error as a server-sent event, which OpenAI's clients raise; no `[DONE]` follows it."""
    return b"data: " + to_json(body(error)) + b"\n\n"
