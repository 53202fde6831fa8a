"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`, and as the last event of a stream.

Knows nothing of what went wrong; turns what SGLang says into the same form.
"""

import json
from typing import Any

from starlette.responses import JSONResponse

INVALID = "invalid_request_error"
SERVER = "server_error"
OVERLOADED = "rate_limit_error"


def body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(
    status: int, message: str, *, kind: str, code: str | None = None, retry_after_s: int | None = None
) -> JSONResponse:
    """Return an error as a response."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse(body(message, kind=kind, code=code), status_code=status, headers=headers)


def event(message: str, *, code: str) -> bytes:
    """Return an error as a server-sent event, which OpenAI's clients raise; no `[DONE]` follows it."""
    return b"data: " + json.dumps(body(message, kind=SERVER, code=code)).encode() + b"\n\n"


def from_engine(status: int, content: bytes) -> JSONResponse:
    """Return SGLang's error `content` in OpenAI's form; it has the message at the top level, or FastAPI's `detail`."""
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = {}
    if isinstance(parsed, dict) and isinstance(parsed.get("error"), dict):
        return JSONResponse(parsed, status_code=status)
    fields = parsed if isinstance(parsed, dict) else {}
    message = fields.get("message") or fields.get("detail") or fields.get("error") or f"HTTP {status} from the engine"
    kind = INVALID if status < 500 else SERVER
    return JSONResponse(body(str(message), kind=kind, param=fields.get("param")), status_code=status)
