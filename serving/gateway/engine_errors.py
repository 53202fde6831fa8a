"""Makes ours of the errors that an engine answers, whole or within a stream; the request is known that they refuse."""

import json
from collections.abc import Mapping
from typing import Any

from sparktier.configs.errors import REQUEST_ENDED
from sparktier.serving.gateway.engine_refusals import refusal
from sparktier.serving.gateway.refused import Refused

_ENGINE_FAILED = "The engine failed on this request. The replica's log says why."


def from_engine(status: int, content: bytes, *, asked: Mapping[str, Any]) -> Refused:
    """Return what SGLang's error `content` says; it has the message at the top level, or FastAPI's `detail`.

    `asked` is the request that it refuses.
    """
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = None
    fields = parsed if isinstance(parsed, dict) else {}
    nested = fields.get("error")
    return _restated(status, nested if isinstance(nested, dict) else fields, asked)


def in_event(message: Mapping[str, Any], *, asked: Mapping[str, Any]) -> Refused | None:
    """Return the error that an event of a stream tells, or None. `asked`: as in `from_engine`."""
    fields = message.get("error")
    return _restated(_status(fields), fields, asked) if isinstance(fields, dict) else None


def _status(fields: Mapping[str, Any]) -> int:
    code = fields.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _restated(status: int, fields: Mapping[str, Any], asked: Mapping[str, Any]) -> Refused:
    said = fields.get("message") or fields.get("detail")
    ended = isinstance(said, str) and said.startswith(REQUEST_ENDED)
    if status >= 500:
        message = said if isinstance(said, str) and ended else _ENGINE_FAILED
        return Refused(message, status=status, code="request_ended" if ended else "engine_error")
    found = refusal(said, asked=asked) if isinstance(said, str) else None
    if found is None:
        return Refused(f"The engine refused this request ({status}).", status=status, code="invalid_request")
    return Refused(found.message, status=status, code=found.code, param=found.param)
