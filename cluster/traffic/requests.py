"""Requests in the order of their times, before it is said who sends them: cut, scaled, and superposed with copies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparktier.cluster.arrays import Floats, Ints

PREFIX_BLOCK_TOKENS = 512
"""Tokens of the prompt that one id of `Requests.prefixes` stands for, as in Mooncake's traces."""


@dataclass(frozen=True, eq=False)
class Requests:
    """Offered requests, sorted by time.

    at_ms [n], from 0; prompt_tokens [n] and output_tokens [n], 1 or more; session [n]: requests of one conversation
    have one number. prefixes: ids of the blocks of each prompt, or `()` where they are not known; equal ids mean equal
    blocks with equal prompts before them. span_ms: the length of the time they were taken from.
    """

    at_ms: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints
    prefixes: Sequence[tuple[int, ...]]
    span_ms: float

    def __len__(self) -> int:
        return len(self.at_ms)

    @property
    def rate_s(self) -> float:
        """Requests per second, over the whole span."""
        return 1000.0 * len(self) / self.span_ms


def window(requests: Requests, *, start_ms: float = 0.0, span_ms: float | None = None) -> Requests:
    """Return the requests of `span_ms` from `start_ms`, or of all that is left; times begin at 0 again."""
    left_ms = max(requests.span_ms - start_ms, 0.0)
    span_ms = left_ms if span_ms is None else min(span_ms, left_ms)
    inside = np.flatnonzero((requests.at_ms >= start_ms) & (requests.at_ms < start_ms + span_ms))
    kept = _taken(requests, inside)
    return replace(kept, at_ms=kept.at_ms - start_ms, span_ms=span_ms)


def scaled(requests: Requests, factor: float) -> Requests:
    """Return the same requests at `factor` times their rate: all of time runs faster, so bursts keep their shape."""
    return replace(requests, at_ms=requests.at_ms / factor, span_ms=requests.span_ms / factor)


def superposed(requests: Requests, copies: int, *, seed: int) -> Requests:
    """Return `copies` times the requests in the same time, for a trace that is too small.

    The first copy is the trace itself. Each other one is shifted by a random time, and what leaves at the end comes
    at the beginning, so that bursts of copies don't meet. Copies are other users: they share no session and no prefix.
    """
    if not len(requests):
        return requests
    shifts_ms = np.random.default_rng([seed, 0]).uniform(0.0, requests.span_ms, copies)
    shifts_ms[0] = 0.0
    sessions = int(requests.session.max()) + 1
    blocks = max((max(ids) for ids in requests.prefixes if ids), default=0) + 1
    at_ms = np.concatenate([(requests.at_ms + shift) % requests.span_ms for shift in shifts_ms])
    together = Requests(
        at_ms=at_ms,
        prompt_tokens=np.tile(requests.prompt_tokens, copies),
        output_tokens=np.tile(requests.output_tokens, copies),
        session=np.concatenate([requests.session + copy * sessions for copy in range(copies)]),
        prefixes=[tuple(i + copy * blocks for i in ids) for copy in range(copies) for ids in requests.prefixes],
        span_ms=requests.span_ms,
    )
    return _taken(together, np.argsort(at_ms, kind="stable"))


def _taken(requests: Requests, order: Ints) -> Requests:
    return Requests(
        at_ms=requests.at_ms[order],
        prompt_tokens=requests.prompt_tokens[order],
        output_tokens=requests.output_tokens[order],
        session=requests.session[order],
        prefixes=[requests.prefixes[index] for index in order],
        span_ms=requests.span_ms,
    )
