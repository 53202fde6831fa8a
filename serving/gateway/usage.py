"""What speculation did for a request, as `usage.sparktier` of its answer: tier, accepted length, rounds, rows verified.

SGLang reports it under `sglext` when asked to; here it moves to where OpenAI's clients look.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

_ASK = "return_spec_tokens_details"
_SGLANG, _DETAILS = "sglext", "spec_tokens_details"
_DATA = b"data: "
# An object under one of these names; within a text the quotes are escaped.
_MARKS = (b'"sglext":{', b'"usage":{')
# Told how many tokens a request had, prompts and answers together.
Count = Callable[[int], None]


def asking(body: Mapping[str, Any], *, tokens: bool = False) -> dict[str, Any]:
    """Return `body`, the request for an engine, with the field that makes SGLang report its speculation.

    With `tokens` a stream reports its tokens too.

    Of several prompts SGLang reports the first alone, so that it isn't asked then.
    """
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    found = {**body, _ASK: not several}
    if tokens and body.get("stream"):
        found["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return found


def asked(body: Mapping[str, Any]) -> bool:
    """Return whether the client has asked for `usage` at the end of its stream."""
    return bool((body.get("stream_options") or {}).get("include_usage"))


def in_answer(content: bytes, *, tier: str, count: Count) -> bytes:
    """Return the JSON answer `content` with `usage.sparktier` in it, for a request that was served as `tier`.

    `count` is told its tokens.
    """
    answer = from_json(content)
    details = _taken(answer)
    if isinstance(answer.get("usage"), dict):
        count(answer["usage"].get("total_tokens", 0))
        answer["usage"]["sparktier"] = _usage(details, tier=tier)
    return to_json(answer)


class UsageStream:
    """The same for the server-sent events of one answer: details of early events wait for the event with `usage`.

    `hidden` leaves out the event with `usage`, for a client that has not asked for it.
    """

    def __init__(self, *, tier: str, count: Count, hidden: bool) -> None:
        self._tier = tier
        self._count = count
        self._hidden = hidden
        self._details: list[dict[str, Any]] = []

    def events(self, events: bytes) -> bytes:
        """Return whole `events` as the client gets them; an event with details of speculation alone is left out."""
        if not any(mark in events for mark in _MARKS):
            return events
        return b"".join(map(self._event, filter(None, events.split(b"\n\n"))))

    def _event(self, event: bytes) -> bytes:
        if not event.startswith(_DATA) or not any(mark in event for mark in _MARKS):
            return event + b"\n\n"
        message = from_json(event[len(_DATA) :])
        details = _taken(message)
        self._details += details
        whole = not message.get("choices")
        if details and whole and not message.get(_SGLANG) and not message.get("usage"):
            return b""
        if whole and isinstance(message.get("usage"), dict):
            self._count(message["usage"].get("total_tokens", 0))
            if self._hidden:
                return b""
            message["usage"]["sparktier"] = _usage(self._details, tier=self._tier)
        return _DATA + to_json(message) + b"\n\n"


def _taken(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Take SGLang's details of each choice out of `message` and return them."""
    extension = message.get(_SGLANG)
    if not isinstance(extension, dict):
        return []
    details = extension.pop(_DETAILS, None)
    if not extension:
        del message[_SGLANG]
    return details if isinstance(details, list) else [details] if details else []


def _usage(details: Sequence[Mapping[str, Any]], *, tier: str) -> dict[str, Any]:
    """Sum over the choices of a request; without rounds of speculation there is only the tier."""
    rounds = sum(choice["spec_verify_ct"] for choice in details)
    if rounds == 0:
        return {"tier": tier}
    accepted = sum(choice["spec_num_correct_drafts"] for choice in details)
    rows = sum(rows * count for choice in details for rows, count in enumerate(choice["spec_cap_lens_histogram"]))
    return {"tier": tier, "accepted_length": 1 + accepted / rounds, "rounds": rounds, "rows_verified": rows}
