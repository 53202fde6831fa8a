"""From a request's bytes to the JSON object in them, bounded in size and strict in form.

Knows nothing of the object's fields.
"""

from typing import Any

from pydantic_core import from_json
from starlette.requests import Request

from sparktier.serving.openai_errors import Refused


async def read_object(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object that was sent.

    Raises:
        Refused: it is too large, of another content type, no JSON, or no object.
        starlette.requests.ClientDisconnect: the client hung up before it was all there.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            message = f"A request body may have {max_bytes} bytes at most. Send a shorter prompt."
            raise Refused(message, status=413, code="body_too_large")
        chunks.append(chunk)
    return json_object(request.headers.get("content-type", ""), b"".join(chunks))


def json_object(content_type: str, raw: bytes) -> dict[str, Any]:
    """Return the object that `raw` holds. Raises Refused, see `read_object`."""
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise Refused(f"Content-Type must be application/json (found {content_type[:80] or 'none'}).")
    try:
        # Not the json module: this parser bounds the depth, and refuses NaN and strings that are no Unicode.
        found = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(f"The body must be JSON ({error}).") from error
    if not isinstance(found, dict):
        raise Refused("The body must be a JSON object.")
    return found
