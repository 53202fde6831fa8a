"""How many tokens a request had, how fast, and what speculation did for it: `usage.sparktier`, with its tier.

SGLang reports speculation under `sglext` when asked to; here it moves to where OpenAI's clients look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparktier.serving.gateway.engine_times import EngineTimes, take_times

_ASK = "return_spec_tokens_details"
_SGLANG, _DETAILS = "sglext", "spec_tokens_details"
_OPTIONS, _LAST, _EACH = "stream_options", "include_usage", "continuous_usage_stats"


def asking(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return `body`, the request for an engine, with the fields that make SGLang report its tokens and speculation.

    Of several prompts SGLang reports the speculation of the first alone, so that it isn't asked then. A stream tells
    its tokens with each event: only so is it known how many were delivered when it breaks off.
    """
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    found = {**body, _ASK: not several}
    if body.get("stream"):
        found[_OPTIONS] = {**(body.get(_OPTIONS) or {}), _LAST: True, _EACH: True}
    return found


@dataclass
class Tokens:
    """The tokens that the engine has told of one request so far."""

    prompt: int | None = None
    completion: int | None = None
    # Prompts and answers together, once they are final.
    total: int | None = None
    # By choice, while a stream runs.
    _prompts: dict[int, int] = field(default_factory=dict)
    _completions: dict[int, int] = field(default_factory=dict)

    def all(self, usage: Mapping[str, Any]) -> None:
        """Take the final counts of the whole request."""
        self.prompt, self.completion = _counts(usage)
        self.total = usage.get("total_tokens", 0)

    def of_choice(self, index: int, usage: Mapping[str, Any], *, choices: int) -> None:
        """Take the counts that the choice `index` has reached; `choices` in a row answer one prompt."""
        self._prompts[index - index % choices], self._completions[index] = _counts(usage)
        self.prompt = sum(self._prompts.values())
        self.completion = sum(self._completions.values())


class UsageEdit:
    """Reads the usage in the engine's messages of one request, and writes into them what its client is to see."""

    def __init__(self, body: Mapping[str, Any], *, tier: str, asked_tier: str | None = None) -> None:
        options = body.get(_OPTIONS) or {}
        self.tokens = Tokens()
        self.times: EngineTimes | None = None
        self.waited_ms = 0.0
        self._tier, self._asked_tier = tier, asked_tier
        self._choices = int(body.get("n") or 1)
        self._shows_last = bool(options.get(_LAST))
        self._shows_each = bool(options.get(_EACH))
        self._details: list[dict[str, Any]] = []

    def whole(self, answer: dict[str, Any]) -> None:
        """Edit a whole answer."""
        self.times = take_times(answer)
        details = _taken(answer)
        if isinstance(usage := answer.get("usage"), dict):
            self.tokens.all(usage)
            usage["sparktier"] = self._served(details)

    def event(self, message: dict[str, Any]) -> bool:
        """Edit an event of a stream; return whether the client gets it.

        Details of speculation come before the last event, the one with `usage`, and wait for it.
        """
        times = take_times(message)
        self.times = times or self.times
        details = _taken(message)
        self._details += details
        usage = message.get("usage")
        if choices := message.get("choices"):
            if isinstance(usage, dict):
                self.tokens.of_choice(choices[0].get("index", 0), usage, choices=self._choices)
                if not self._shows_each:
                    message["usage"] = None
            return True
        if not isinstance(usage, dict):
            return bool(message.get(_SGLANG)) or not (details or times)
        self.tokens.all(usage)
        usage["sparktier"] = self._served(self._details)
        return self._shows_last

    def _served(self, details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        asked = {} if self._asked_tier is None else {"asked_tier": self._asked_tier}
        return {"tier": self._tier, **asked, **self._speed(), **_speculation(details)}

    def _speed(self) -> dict[str, float]:
        """Return the speed, and the wait for the first token from the request's arrival here, as the replica saw them.

        Only durations are added: the clocks of gateway and replica may differ.
        """
        times = self.times
        if times is None:
            return {}
        speed = {} if times.attained_tok_s is None else {"attained_tok_s": round(times.attained_tok_s, 2)}
        first = {} if times.first_token_ms is None else {"ttft_ms": round(self.waited_ms + times.first_token_ms, 1)}
        return speed | first


def _counts(usage: Mapping[str, Any]) -> tuple[int, int]:
    return usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0


def _taken(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Take SGLang's details of each choice out of `message` and return them."""
    extension = message.get(_SGLANG)
    if not isinstance(extension, dict):
        return []
    details = extension.pop(_DETAILS, None)
    if not extension:
        del message[_SGLANG]
    return details if isinstance(details, list) else [details] if details else []


def _speculation(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum over the choices of a request; empty without rounds of speculation."""
    rounds = sum(choice["spec_verify_ct"] for choice in details)
    if rounds == 0:
        return {}
    accepted = sum(choice["spec_num_correct_drafts"] for choice in details)
    rows = sum(rows * count for choice in details for rows, count in enumerate(choice["spec_cap_lens_histogram"]))
    return {"accepted_length": 1 + accepted / rounds, "rounds": rounds, "rows_verified": rows}
