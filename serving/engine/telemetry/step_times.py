"""Averages of one rank's speed: step time by rung, the share of time in prefill, tokens per second of each user.

Pure: callers pass the time. Every average decays, so that old traffic is forgotten.
"""

from collections import deque
from collections.abc import Iterable

_STEP_WEIGHT = 0.1
_PREFILL_MEMORY_S = 10.0
_FINISHED_MEMORY_S = 30.0
_MOST_FINISHED = 1024
# A step delivers several tokens at once; over fewer tokens than this the last step would dominate the speed.
LEAST_TOKENS = 8


class StepTimes:
    """Times of steps, each measured from the end of the step before, so that the scheduler's work is included.

    `step_ms` is a moving average by rung; `decode_steps` and `decode_ms` are totals over all decode steps.
    """

    def __init__(self) -> None:
        self.step_ms: dict[int, float] = {}
        self.decode_steps = 0
        self.decode_ms = 0.0
        self._since_s: float | None = None
        self._prefill_s = 0.0
        self._busy_s = 0.0
        self._prompt_ms = 0.0
        self._prompt_tokens = 0.0

    @property
    def prefill_frac(self) -> float:
        """The share of recent busy time spent in prefill."""
        return self._prefill_s / self._busy_s if self._busy_s > 0 else 0.0

    def idle(self, now_s: float) -> None:
        """Note that nothing ran until `now_s`."""
        self._since_s = now_s

    def prefilled(self, now_s: float, *, tokens: int) -> None:
        """Note the end of a prefill step over `tokens` of prompts."""
        took_s = self._lap(now_s)
        self._spend(took_s, prefill=True)
        if tokens > 0:
            self._prompt_ms = (1.0 - _STEP_WEIGHT) * self._prompt_ms + took_s * 1000.0
            self._prompt_tokens = (1.0 - _STEP_WEIGHT) * self._prompt_tokens + tokens

    @property
    def prefill_ms_per_token(self) -> float | None:
        """Time of a prompt's token in recent prefill steps; None before the first."""
        return self._prompt_ms / self._prompt_tokens if self._prompt_tokens > 0 else None

    def decoded(self, now_s: float, *, rung: int) -> float:
        """Note the end of a decode step that ran on `rung`, and return the milliseconds that it took."""
        took_s = self._lap(now_s)
        self.decode_steps += 1
        self.decode_ms += took_s * 1000.0
        self._spend(took_s, prefill=False)
        before = self.step_ms.get(rung, took_s * 1000.0)
        self.step_ms[rung] = before + _STEP_WEIGHT * (took_s * 1000.0 - before)
        return took_s * 1000.0

    def _lap(self, now_s: float) -> float:
        took_s = 0.0 if self._since_s is None else now_s - self._since_s
        self._since_s = now_s
        return took_s

    def _spend(self, took_s: float, *, prefill: bool) -> None:
        kept = max(0.0, 1.0 - took_s / _PREFILL_MEMORY_S)
        self._busy_s = self._busy_s * kept + took_s
        self._prefill_s = self._prefill_s * kept + (took_s if prefill else 0.0)


class UserSpeeds:
    """Tokens per second by tier of requests that ended lately, each measured from its first token to its last."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, int, float]] = deque(maxlen=_MOST_FINISHED)

    def ended(self, now_s: float, *, tier: int, tokens: int, first_token_s: float) -> None:
        """Count a request of `tier` that got its first of `tokens` at `first_token_s` and its last now."""
        rate = speed(tokens, first_token_s=first_token_s, last_token_s=now_s)
        if rate is not None:
            self._ended.append((now_s, tier, rate))

    def by_tier(self, now_s: float, running: Iterable[tuple[int, float]]) -> dict[int, list[float]]:
        """Return the speeds of requests that ended lately and of those `running`, given as (tier, speed)."""
        found: dict[int, list[float]] = {}
        recent = ((tier, rate) for at_s, tier, rate in self._ended if now_s - at_s <= _FINISHED_MEMORY_S)
        for tier, rate in (*recent, *running):
            found.setdefault(tier, []).append(rate)
        return found


def speed(tokens: int, *, first_token_s: float, last_token_s: float) -> float | None:
    """Return tokens per second after the first token, or None for fewer than LEAST_TOKENS."""
    if tokens < LEAST_TOKENS or last_token_s <= first_token_s:
        return None
    return (tokens - 1) / (last_token_s - first_token_s)
