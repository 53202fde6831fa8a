"""From a request's bytes to the JSON object in them, bounded in size and time and strict in form."""

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests.values import BadValue, strict_json

_GZIP_MAGIC = b"\x1f\x8b"


class BodyIntake:
    """Receives the bodies of requests, `most` at once; one more ends the oldest that is still arriving.

    So a client that sends nothing can hold no memory for long, and can't keep out clients that send.
    """

    def __init__(self, *, max_bytes: int, timeout_s: float, most: int) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._most = most
        # The oldest first.
        self._arriving: dict[asyncio.Timeout, None] = {}

    async def object_of(self, headers: Headers, receive: Receive) -> dict[str, Any]:
        """Return the JSON object that was sent.

        Raises:
            Refused: it came too slowly, is too large, of another content type or encoding, no JSON, or no object.
            starlette.requests.ClientDisconnect: the client hung up before it was all there.
        """
        if len(self._arriving) >= self._most:
            self._end_oldest()
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                self._arriving[limit] = None
                try:
                    raw = await _received(headers, receive, max_bytes=self._max_bytes)
                finally:
                    self._arriving.pop(limit, None)
        except TimeoutError as error:
            message = (
                f"The body of a request must arrive within {self._timeout_s:g} s, "
                f"or sooner while {self._most} others are on their way. Send it at once."
            )
            raise Refused(message, status=408, code="body_too_slow", close=True) from error
        return json_object(headers.get("content-type", ""), raw)

    def _end_oldest(self) -> None:
        oldest = next(iter(self._arriving))
        del self._arriving[oldest]
        if not oldest.expired():
            oldest.reschedule(asyncio.get_running_loop().time())


def json_object(content_type: str, raw: bytes) -> dict[str, Any]:
    """Return the object that `raw` holds. Raises Refused, see `BodyIntake.object_of`."""
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise Refused(f"Content-Type must be application/json (found {content_type[:80] or 'none'}).")
    if raw.startswith(_GZIP_MAGIC):
        raise Refused("The body must be JSON as plain text (found gzip data). Send it uncompressed.")
    try:
        found = strict_json(raw)
    except BadValue as error:
        raise Refused(str(error), param=error.path or None) from error
    except ValueError as error:
        raise Refused(f"The body must be JSON ({error}).") from error
    if not isinstance(found, dict):
        raise Refused("The body must be a JSON object.")
    return found


async def _received(headers: Headers, receive: Receive, *, max_bytes: int) -> bytes:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        rule = f"Content-Encoding must be identity (found {encoding[:80]}). Send the body uncompressed."
        raise Refused(rule, status=415, code="unsupported_encoding")
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > max_bytes:
            rule = f"A request body may have {max_bytes} bytes at most. Send a shorter prompt."
            raise Refused(rule, status=413, code="body_too_large")
        chunks.append(chunk)
    return b"".join(chunks)
