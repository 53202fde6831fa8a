"""When a replica took a request, began it, and had its first and last token: the key `sparktier` of its answers."""

from dataclasses import dataclass
from typing import Any

_KEY = "sparktier"


@dataclass(frozen=True)
class EngineTimes:
    """By the replica's clock: `arrived_at_ms` is a time of day, the other times are milliseconds after it.

    None is what the request did not reach. `attained_tok_s` is the mean speed of its users after their first tokens.
    """

    arrived_at_ms: float
    ended_ms: float
    prefill_ms: float | None = None
    first_token_ms: float | None = None
    attained_tok_s: float | None = None


def take_times(message: dict[str, Any]) -> EngineTimes | None:
    """Take the times out of an engine's `message` and return them; None where there are none."""
    told = message.pop(_KEY, None)
    if not isinstance(told, dict):
        return None
    try:
        return EngineTimes(**told)
    except TypeError:
        return None
