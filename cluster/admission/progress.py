"""Whether a replica is healthy as a gateway sees it: how its last requests ended, and whether tokens come. Pure.

A replica hangs if it has streams to feed and no token of any has come for `STEPS` times its usual step, and the time
that prefill of the prompts it was sent takes.
"""

from dataclasses import dataclass

STEPS = 20
LEAST_S = 10.0
"""No replica is said to hang before this; a busy machine is slow for some seconds."""
FAILURES = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
_SMOOTHING = 0.1
_USUAL_STEP_S, _USUAL_PREFILL_S = 0.5, 0.005


@dataclass
class Progress:
    """One replica. Times are in seconds of a monotonic clock."""

    failures: int = 0
    shut_until_s: float = 0.0
    streams: int = 0
    waiting_tokens: int = 0
    last_s: float = 0.0
    step_s: float = _USUAL_STEP_S
    prefill_s_per_token: float = _USUAL_PREFILL_S

    def sent(self, prompt_tokens: int, now_s: float) -> None:
        """A stream with a prompt of so many tokens has begun."""
        if not self.streams:
            self.last_s = now_s
        self.streams += 1
        self.waiting_tokens += prompt_tokens

    def first(self, prompt_tokens: int, *, took_s: float, now_s: float) -> None:
        """A stream has its first token."""
        self.waiting_tokens -= prompt_tokens
        self.prefill_s_per_token += _SMOOTHING * (took_s / max(1, prompt_tokens) - self.prefill_s_per_token)
        self.succeeded(now_s)

    def token(self, *, since_s: float, now_s: float) -> None:
        """A stream has more tokens, `since_s` after those before."""
        self.step_s += _SMOOTHING * (since_s - self.step_s)
        self.last_s = now_s

    def over(self, prompt_tokens: int, *, had_first: bool) -> None:
        """A stream is over, however it ended."""
        self.streams -= 1
        if not had_first:
            self.waiting_tokens -= prompt_tokens

    def succeeded(self, now_s: float) -> None:
        """It has answered."""
        self.failures, self.shut_until_s, self.last_s = 0, 0.0, now_s

    def failed(self, now_s: float) -> None:
        """It was lost, took no connection, or answered what can't be read."""
        self.failures += 1
        if self.failures >= FAILURES:
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self.failures - FAILURES))
            self.shut_until_s = now_s + pause_s

    def hangs(self, now_s: float) -> bool:
        """Whether tokens are overdue."""
        longest_s = max(LEAST_S, STEPS * self.step_s) + self.waiting_tokens * self.prefill_s_per_token
        return self.streams > 0 and now_s - self.last_s > longest_s

    def healthy(self, now_s: float) -> bool:
        """Whether it should get requests while others serve too."""
        return now_s >= self.shut_until_s and not self.hangs(now_s)
