"""The running requests of a simulated engine as arrays, in the order of their slots."""

from typing import Any

import numpy as np

from sparktier.cluster.arrays import Floats, Ints

_FIRST_PLACES = 4096


class Slots:
    """Requests side by side; each array below is [requests] or [requests, nodes]."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self.requests: list[Any] = []
        self._submitted: list[float] = []
        self.tier, self.prompt, self.delivered, self._length, self._first_place = (
            np.zeros(0, dtype=np.int64) for _ in range(5)
        )
        self._is_chain = np.zeros(0, dtype=np.bool_)
        self.promise_tok_s, self.first_ms = np.zeros(0), np.zeros(0)
        self.seen: Floats = np.zeros((0, nodes))
        self.age_steps: Ints = np.zeros(0, dtype=np.int64)
        self._texts = _Places(nodes)

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV that all need at their end."""
        return int(self.prompt.sum() + self._length.sum())

    @property
    def most_rows(self) -> Ints:
        """Rows that each may have: no more than it has tokens to come, none beyond the anchor's before its last."""
        useful = np.maximum(self._length - self.delivered - 1, 0)
        drafted = np.where(self._is_chain, np.minimum(useful, self._nodes), np.where(useful > 0, self._nodes, 0))
        most: Ints = 1 + drafted
        return most

    def add(self, request: Any, *, submitted_ms: float, first_ms: float) -> None:
        """Add a request that has its first token."""
        self.requests.append(request)
        self._submitted.append(submitted_ms)
        answer = request.answer
        self.tier = np.append(self.tier, request.tier)
        self.prompt = np.append(self.prompt, request.prompt_tokens)
        self.delivered = np.append(self.delivered, 1)
        self._length = np.append(self._length, answer.tokens)
        if not self._texts.has_room(len(answer.survival)):
            self._first_place = self._texts.keep_only(self._first_place, self._length[:-1] - 1)
        self._first_place = np.append(self._first_place, self._texts.add(answer.survival, answer.accepted))
        self._is_chain = np.append(self._is_chain, answer.is_chain)
        self.promise_tok_s = np.append(self.promise_tok_s, request.promise_tok_s)
        self.first_ms = np.append(self.first_ms, first_ms)
        self.seen = np.concatenate((self.seen, np.full((1, self._nodes), np.nan)))
        self.age_steps = np.append(self.age_steps, -1)

    def drafts(self) -> tuple[Floats, Ints]:
        """Of each request's draft at its present place: survivals [requests, nodes], and tokens accepted
        [requests, nodes + 1] if so many of its nodes are verified.
        """
        place = self._first_place + self.delivered - 1
        return self._texts.survival[place], self._texts.accepted[place]

    def advance(self, survival: Floats, tokens: Ints) -> None:
        """Move each request on by `tokens`; its draft had `survival`."""
        self.seen, self.age_steps = survival, np.ones(len(self), dtype=np.int64)
        self.delivered = self.delivered + tokens

    def remove_ended(self) -> list[tuple[Any, float, float]]:
        """Remove the requests that have their whole answer; return each with its submission and first token in ms."""
        running = self.delivered < self._length
        if running.all():
            return []
        gone = [
            (self.requests[place], self._submitted[place], float(self.first_ms[place]))
            for place in np.flatnonzero(~running)
        ]
        kept = np.flatnonzero(running).tolist()
        self.requests = [self.requests[place] for place in kept]
        self._submitted = [self._submitted[place] for place in kept]
        self.tier, self.prompt, self.delivered = self.tier[running], self.prompt[running], self.delivered[running]
        self._length, self._first_place = self._length[running], self._first_place[running]
        self._is_chain, self.promise_tok_s = self._is_chain[running], self.promise_tok_s[running]
        self.first_ms, self.seen, self.age_steps = self.first_ms[running], self.seen[running], self.age_steps[running]
        return gone


class _Places:
    """The places of the answers of all slots, one answer after another. Those of answers that are gone lie between."""

    def __init__(self, nodes: int) -> None:
        self.survival = np.zeros((_FIRST_PLACES, nodes))
        self.accepted = np.zeros((_FIRST_PLACES, nodes + 1), dtype=np.int64)
        self._used = 0

    def has_room(self, places: int) -> bool:
        """Return whether so many more places fit."""
        return self._used + places <= len(self.survival)

    def keep_only(self, first: Ints, places: Ints) -> Ints:
        """Move answers of [n] `places` that begin at `first` [n] together; return where they begin."""
        began: Ints = np.cumsum(places) - places
        total = int(places.sum())
        old = np.repeat(first - began, places) + np.arange(total)
        survival, accepted = self.survival[old], self.accepted[old]
        self.survival[:total], self.accepted[:total], self._used = survival, accepted, total
        if 2 * total > len(self.survival):
            # Else answers would be moved together at every step.
            self.survival = np.concatenate((self.survival, np.zeros_like(self.survival)))
            self.accepted = np.concatenate((self.accepted, np.zeros_like(self.accepted)))
        return began

    def add(self, survival: Floats, accepted: Ints) -> int:
        """Keep an answer's places and return the first one's number."""
        first, self._used = self._used, self._used + len(survival)
        while not self.has_room(0):
            self.survival = np.concatenate((self.survival, np.zeros_like(self.survival)))
            self.accepted = np.concatenate((self.accepted, np.zeros_like(self.accepted)))
        self.survival[first : self._used] = survival
        self.accepted[first : self._used] = accepted
        return first
