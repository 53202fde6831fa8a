"""An engine whose rung the ladder chooses while it runs: counters are read, the ladder learns, the plan follows.

A controller will do the same for whole clusters.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from sparktier.cluster.rung_policy import Ladder
from sparktier.configs.errors import ReplicaError
from sparktier.serving.bench.target import Totals

# Some ten steps of a small model on a CPU with many users: fewer say little of a rung.
TICK_S = 5.0


class Engine(Protocol):
    """What is steered; `target.Target` is one."""

    def set_plan(self, **keys: float) -> None:
        """Put plan keys in force."""

    def totals(self) -> Totals:
        """Read counters."""


def learn(ladder: Ladder, rung: int, seen: Totals) -> None:
    """Teach `ladder` what the engine did on `rung`."""
    if seen.steps > 0:
        ladder.observe(rung, users=seen.users, steps=seen.steps, step_ms=seen.step_ms, round_tokens=seen.round_tokens)


@contextmanager
def climbing(engine: Engine, ladder: Ladder, *, users: int, tick_s: float = TICK_S) -> Iterator[Counter[int]]:
    """Keep `engine` on the rung that `ladder` chooses, for `users` users at first, then every `tick_s` for as many
    as there are.

    Yields how many times each rung was chosen, complete once the body has ended.

    Raises:
        ReplicaError: the engine refused a plan, or stopped answering; told once the body has ended.
    """
    rung, chosen, ended = ladder.choose(users=users), Counter[int](), threading.Event()
    failures: list[ReplicaError] = []
    chosen[rung] += 1
    engine.set_plan(rung=rung, rows=0)

    def steer() -> None:
        now, before = rung, engine.totals()
        while not ended.wait(tick_s):
            after = engine.totals()
            seen, before = after.since(before), after
            learn(ladder, now, seen)
            if seen.steps > 0:
                best = ladder.choose(users=seen.users, now=now)
                chosen[best] += 1
                if best != now:
                    engine.set_plan(rung=best, rows=0)
                now = best

    def guarded() -> None:
        try:
            steer()
        except ReplicaError as error:
            failures.append(error)

    steering = threading.Thread(target=guarded, name="ladder", daemon=True)
    steering.start()
    try:
        yield chosen
    finally:
        ended.set()
        steering.join()
    if failures:
        raise failures[0]
