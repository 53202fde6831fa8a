"""What a request is known by: the client's own id where it is well-formed, and the trace that it continues."""

import re
import uuid

HEADER = "x-request-id"
_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def kept_or_new(own: str | None) -> str:
    """Return a client's `own` id, or a new one."""
    return own if own is not None and _ID.fullmatch(own) else uuid.uuid4().hex


def traceparent(sent: str | None) -> str | None:
    """Return a client's `traceparent` if it is well-formed."""
    return sent if sent is not None and _TRACEPARENT.fullmatch(sent) else None
