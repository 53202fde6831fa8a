"""The requests of one load: when each is sent, by whom, to which tier, with which text. One seed makes one load."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparktier.cluster.traffic.arrivals import Arrival, Share, arrivals
from sparktier.cluster.traffic.generated import Length, generated
from sparktier.cluster.traffic.requests import PREFIX_BLOCK_TOKENS, Requests, scaled, superposed, window
from sparktier.cluster.traffic.trace_files import read_trace

_ANSWER_TOKENS = 128
# For a template's own tokens.
_SPARE_TOKENS = 64


@dataclass(frozen=True)
class Offered:
    """One request. `to_the_end`: its answer has `max_tokens`, whatever the model would say."""

    arrival: Arrival
    text: str
    max_tokens: int
    to_the_end: bool

    def body(self, model: str) -> dict[str, Any]:
        """Return the request as OpenAI's API has it."""
        return {
            "model": model,
            "messages": [{"role": "user", "content": self.text}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": self.to_the_end,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass(frozen=True)
class Load:
    """All requests of a run, in the order of their times."""

    rate_s: float
    span_ms: float
    requests: Sequence[Offered]
    clipped: int
    """Requests of a trace that were made shorter to fit the model's context."""


@dataclass(frozen=True)
class Texts:
    """What is asked, and how long a text of so many tokens is."""

    prompts: Sequence[str]
    characters_per_token: float
    context_tokens: int


def load_of(
    texts: Texts,
    shares: Sequence[Share],
    *,
    rate_s: float | None,
    trace: Path | None,
    span_s: float,
    tokens: int | None,
    seed: int,
) -> Load:
    """Return the load at `rate_s`, of a Poisson process or of a trace that is brought to that rate.

    Args:
        texts: prompts are asked as they are; those of a trace are put together to its lengths.
        shares: tenants and tiers.
        rate_s: requests per second; None is a trace's own rate.
        trace: a file of a public trace.
        span_s: length of the load.
        tokens: longest answer; without it a trace's own, or 128.
        seed: of all that is drawn.

    Raises:
        ArtifactError: the trace is broken.
    """
    if trace is None:
        assert rate_s is not None
        lengths = [Length(1, tokens or _ANSWER_TOKENS)]
        drawn = generated(rate_s, span_ms=1000.0 * span_s, lengths=lengths, seed=seed)
        chosen = np.random.default_rng([seed, 4]).integers(len(texts.prompts), size=len(drawn))
        asked = [texts.prompts[index] for index in chosen]
        counts = [max(round(len(text) / texts.characters_per_token), 1) for text in asked]
        drawn = replace(drawn, prompt_tokens=np.array(counts, dtype=np.int64))
        clipped = 0
    else:
        drawn = at_rate(read_trace(trace), rate_s, span_s=span_s, seed=seed)
        drawn, clipped = _clipped(drawn, texts.context_tokens, tokens)
        asked = [_text(drawn, index, texts, seed) for index in range(len(drawn))]
    requests = [
        Offered(arrival, text, arrival.output_tokens, to_the_end=trace is not None)
        for arrival, text in zip(arrivals(drawn, shares, seed=seed), asked, strict=True)
    ]
    return Load(drawn.rate_s if rate_s is None else rate_s, drawn.span_ms, requests, clipped)


def at_rate(trace: Requests, rate_s: float | None, *, span_s: float, seed: int) -> Requests:
    """Return the beginning of `trace` at `rate_s`: copies are superposed where it has fewer requests, and time runs
    slower where it has more.
    """
    if rate_s is not None:
        together = superposed(trace, max(math.ceil(rate_s / trace.rate_s), 1), seed=seed)
        trace = scaled(together, rate_s / together.rate_s)
    return window(trace, span_ms=1000.0 * span_s)


def shares_of(tenants: Sequence[str], tiers: Mapping[int, str], weights: Mapping[str, float]) -> list[Share]:
    """Return the shares of all tenants, equal, in all tiers with a weight; without weights all tiers are equal."""
    return [
        Share(tenant, tier, weights.get(name, 0.0) if weights else 1.0)
        for tenant in tenants
        for tier, name in tiers.items()
        if not weights or weights.get(name, 0.0) > 0
    ]


def _clipped(requests: Requests, context_tokens: int, tokens: int | None) -> tuple[Requests, int]:
    """Return the requests with answers of at most `tokens`, and at most half a context, and prompts that fit beside."""
    most = context_tokens // 2 if tokens is None else min(tokens, context_tokens // 2)
    answers = np.minimum(requests.output_tokens, most)
    # A text's length in tokens is an estimate.
    room = np.maximum(((context_tokens - answers) * 0.9).astype(np.int64) - _SPARE_TOKENS, 1)
    prompts = np.minimum(requests.prompt_tokens, room)
    clipped = (prompts < requests.prompt_tokens) | ((answers < requests.output_tokens) if tokens is None else False)
    return replace(requests, prompt_tokens=prompts, output_tokens=answers), int(clipped.sum())


def _text(requests: Requests, index: int, texts: Texts, seed: int) -> str:
    """Return a text of a request's length; equal blocks of prefixes have equal texts, all others begin differently."""
    tokens, ids = int(requests.prompt_tokens[index]), requests.prefixes[index]
    if not ids:
        return _piece(tokens, (6, index), f"{index + 1}. ", texts, seed)
    pieces = [_piece(PREFIX_BLOCK_TOKENS, (5, block), f"({block}) ", texts, seed) for block in ids]
    return "".join(pieces)[: max(round(tokens * texts.characters_per_token), 1)]


def _piece(tokens: int, stream: tuple[int, int], head: str, texts: Texts, seed: int) -> str:
    rng = np.random.default_rng([seed, *stream])
    wanted = max(round(tokens * texts.characters_per_token), 1)
    text = head
    while len(text) < wanted:
        text += texts.prompts[int(rng.integers(len(texts.prompts)))] + "\n\n"
    return text[:wanted]
