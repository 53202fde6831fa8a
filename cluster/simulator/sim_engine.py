"""An engine's steps without its model: queue, prefill, KV limit, decode steps and what each request gets of them.

The planner is the one that ranks run, with survivals one step old for the total. Unlike the real engine it admits a
request only when the KV of its whole answer fits, so it never has to retract one.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparktier.cluster.arrays import Floats, Ints
from sparktier.cluster.simulator.answers import Answer
from sparktier.cluster.simulator.policies import OFF_RUNG, Policy, StepView
from sparktier.cluster.simulator.slots import Slots
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.survival_memory import TierCurves
from sparktier.cluster.verify_planner import usable_survival


@dataclass(frozen=True)
class EngineLimits:
    """What one engine holds, and how it drafts."""

    max_running: int
    kv_tokens: int
    chunk_tokens: int
    """Prompt tokens of one prefill step."""
    nodes: int
    """Drafted tokens of one request."""
    rung: int
    live_shares: bool
    """Whether rows are shared out by the survivals of the step's own drafts."""


@dataclass(frozen=True)
class SimRequest:
    """One request: who asks, what was promised, and the answer that it will get. A promise of 0 is none."""

    key: tuple[int, ...]
    tier: int
    promise_tok_s: float
    prompt_tokens: int
    """0: the prompt is prefilled elsewhere, and the first token is there as soon as there is room."""
    answer: Answer
    cached_tokens: int = 0
    """Of the prompt, from its beginning: their KV is there, and they are not prefilled again."""

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV at its end."""
        return self.prompt_tokens + self.answer.tokens


@dataclass(frozen=True)
class Ended:
    """A request that has its answer."""

    request: SimRequest
    submitted_ms: float
    first_ms: float
    last_ms: float

    @property
    def speed_tok_s(self) -> float:
        """Tokens per second after the first; infinite where all came at once."""
        lasted_ms = self.last_ms - self.first_ms
        return 1000.0 * (self.request.answer.tokens - 1) / lasted_ms if lasted_ms > 0 else np.inf


@dataclass(frozen=True)
class SimStep:
    """One step: its time, and of each request in it, in the order of slots, rows and tokens. A prefill has no rows.

    `whole_tokens` is what each would have got had all of its draft been verified; no planner knows it.
    """

    took_ms: float
    keys: Sequence[tuple[int, ...]]
    rows: Ints
    tokens: Ints
    ended: Sequence[Ended]
    whole_tokens: Ints


@dataclass(frozen=True)
class Running:
    """A running request as an engine holds it between two steps. seen: [nodes] survivals of its last draft, if any."""

    request: SimRequest
    submitted_ms: float
    first_ms: float
    delivered_tokens: int
    seen: Floats | None


@dataclass
class _Waiting:
    request: SimRequest
    submitted_ms: float
    prefilled_tokens: int = 0


class SimEngine:
    """One engine under `policy`. `times` is what the planner believes, `true_times` what happens."""

    def __init__(
        self, policy: Policy, *, times: StepTimeModel, true_times: StepTimeModel, limits: EngineLimits
    ) -> None:
        self._policy, self._times, self._true_times, self._limits = policy, times, true_times, limits
        self._rung = limits.rung if policy.drafts else OFF_RUNG
        self._waiting: deque[_Waiting] = deque()
        self._slots = Slots(limits.nodes)
        self._curves = TierCurves()

    def submit(self, request: SimRequest, *, now_ms: float) -> None:
        """Queue a request."""
        self._waiting.append(_Waiting(request, now_ms, request.cached_tokens))

    def resume(self, running: Sequence[Running], curves: TierCurves) -> None:
        """Go on from the state of another engine: its requests in the order of their slots, its curves; none wait."""
        self._waiting.clear()
        self._slots, self._curves = Slots(self._limits.nodes), curves
        for each in running:
            self._slots.add(each.request, submitted_ms=each.submitted_ms, first_ms=each.first_ms)
        self._slots.delivered = np.array([each.delivered_tokens for each in running], dtype=np.int64)
        for place, each in enumerate(running):
            if each.seen is not None:
                self._slots.seen[place], self._slots.age_steps[place] = each.seen, 1

    @property
    def rung(self) -> int:
        """What is drafted."""
        return self._rung

    @rung.setter
    def rung(self, rung: int) -> None:
        self._rung = rung

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV that the requests of the next decode step need at their end."""
        return self._slots.kv_tokens

    @property
    def running(self) -> Sequence[SimRequest]:
        """The requests of the next decode step, in the order of its rows."""
        return self._slots.requests

    @property
    def tiers(self) -> Ints:
        """Their tiers [requests]."""
        return self._slots.tier

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not len(self._slots)

    def step(self, *, now_ms: float) -> SimStep:
        """Run one step that starts at `now_ms`: a prefill where a request can be admitted, else a decode step."""
        ready, tokens = self._admitted()
        took_ms = self._true_times.prefill_ms(tokens)
        for each in ready:
            self._slots.add(each.request, submitted_ms=each.submitted_ms, first_ms=now_ms + took_ms)
        if not tokens:
            return self._decode(now_ms)
        keys, none = [each.request.key for each in ready], np.zeros(0, dtype=np.int64)
        first = np.ones(len(keys), dtype=np.int64)
        return SimStep(took_ms, keys, none, first, self._ended(now_ms + took_ms), first)

    def _admitted(self) -> tuple[list[_Waiting], int]:
        """The requests whose prompt ends in this step, and the prompt tokens of it."""
        ready: list[_Waiting] = []
        tokens, kv_tokens = 0, self._slots.kv_tokens
        while self._waiting and len(self._slots) + len(ready) < self._limits.max_running:
            first = self._waiting[0]
            kv_tokens += first.request.kv_tokens
            if kv_tokens > self._limits.kv_tokens:
                break
            chunk = min(first.request.prompt_tokens - first.prefilled_tokens, self._limits.chunk_tokens - tokens)
            tokens, first.prefilled_tokens = tokens + chunk, first.prefilled_tokens + chunk
            if first.prefilled_tokens < first.request.prompt_tokens:
                break
            ready.append(self._waiting.popleft())
        return ready, tokens

    def _decode(self, now_ms: float) -> SimStep:
        slots = self._slots
        live, accepted = slots.drafts()
        view = self._view(live, now_ms)
        # Rows without a node to verify are left over.
        rows = np.minimum(self._policy.rows(view, self._times, self._rung), 1 + np.add.reduce(live > 0, axis=1))
        each = np.arange(len(slots))
        tokens, whole = 1 + accepted[each, rows - 1], 1 + accepted[each, view.most_rows - 1]
        total = np.array([rows.sum()], dtype=np.int64)
        requests, context = len(slots), view.context_tokens
        took_ms = float(
            self._true_times.step_ms(rung=self._rung, requests=requests, rows=total, context_tokens=context)[0]
        )
        self._curves.follow(slots.tier.tolist(), self._rung, live)
        keys = [request.key for request in slots.requests]
        slots.advance(live, tokens)
        return SimStep(took_ms, keys, rows, tokens, self._ended(now_ms + took_ms), whole)

    def _view(self, live: Floats, now_ms: float) -> StepView:
        slots = self._slots
        # Where all have a draft of their own, curves stand in for none.
        curve = slots.seen
        if (slots.age_steps < 0).any():
            curve = self._curves.of(slots.tier.tolist(), self._rung, nodes=self._limits.nodes)
        lagged = usable_survival(seen=slots.seen, age_steps=slots.age_steps, most_age_steps=1, curve=curve)
        return StepView(
            lagged=lagged,
            live=live if self._limits.live_shares else lagged,
            most_rows=slots.most_rows,
            promise_tok_s=slots.promise_tok_s,
            since_first_s=(now_ms - slots.first_ms) / 1000.0,
            delivered_tokens=slots.delivered,
            context_tokens=int(slots.prompt.sum() + slots.delivered.sum()),
        )

    def _ended(self, now_ms: float) -> list[Ended]:
        return [Ended(request, submitted, first, now_ms) for request, submitted, first in self._slots.remove_ended()]
