"""Users who ask one thing after another: drives an engine through their requests in virtual time."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sparktier.cluster.simulator.sim_engine import Ended, SimRequest, SimStep


class SteppingEngine(Protocol):
    """An engine that is stepped under a clock of ours."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        ...

    def submit(self, request: SimRequest, *, now_ms: float) -> None:
        """Queue a request that arrives now."""
        ...

    def step(self, *, now_ms: float) -> SimStep:
        """Run one step that starts now."""
        ...


@dataclass(frozen=True)
class Served:
    """What users got: their counted answers, and all tokens of the whole run."""

    ended: Sequence[Ended]
    tokens: int
    took_ms: float

    @property
    def throughput_tok_s(self) -> float:
        """Tokens of all requests per second."""
        return 1000.0 * self.tokens / self.took_ms


def serve(
    engine: SteppingEngine,
    request: Callable[[int, int], SimRequest],
    *,
    users: int,
    turns: int,
    on_step: Callable[[float, SimStep], None] = lambda now_ms, step: None,
) -> Served:
    """Let `users` ask until each has `turns` answers that count; those who have go on asking, so the load stays.

    Each user's turn 0 doesn't count: it only spreads the users over the engine's time.

    Args:
        engine: to serve them.
        request: (user, turn) -> what is asked.
        users: at once.
        turns: counted answers of each.
        on_step: called after each step with its start.
    """
    arrivals = [(0.0, user, 0) for user in range(users)]
    heapq.heapify(arrivals)
    turn_of = dict.fromkeys(range(users), 0)
    now_ms, tokens, missing, ended = 0.0, 0, users, []
    while missing:
        if engine.idle:
            now_ms = max(now_ms, arrivals[0][0])
        while arrivals and arrivals[0][0] <= now_ms:
            arrived_ms, user, turn = heapq.heappop(arrivals)
            engine.submit(request(user, turn), now_ms=arrived_ms)
        step = engine.step(now_ms=now_ms)
        on_step(now_ms, step)
        now_ms, tokens = now_ms + step.took_ms, tokens + int(step.tokens.sum())
        for each in step.ended:
            user = each.request.key[0]
            if 1 <= turn_of[user] <= turns:
                ended.append(each)
                missing -= turn_of[user] == turns
            turn_of[user] += 1
            heapq.heappush(arrivals, (now_ms, user, turn_of[user]))
    return Served(ended, tokens, now_ms)
