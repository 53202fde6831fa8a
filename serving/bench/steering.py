"""Runs the ladder's rung policy against a live engine: reads its counters, updates the ladder, sets the chosen rung."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from sparktier.cluster.rung_policy import Ladder
from sparktier.configs.errors import ReplicaError
from sparktier.serving.bench.counters import Totals

# About ten steps of a small model on a CPU with many users; the mean over fewer steps is too noisy.
TICK_S = 5.0


class Engine(Protocol):
    """An engine that takes plans and counts its steps, such as `MeasuredReplica`."""

    def set_plan(self, *, rung: int, rows: int = 0) -> None:
        """Put every rank on `rung`, with at most `rows` rows a step."""

    def totals(self) -> Totals:
        """Read counters."""


def update_ladder(ladder: Ladder, rung: int, counted: Totals) -> None:
    """Add the steps that the engine ran on `rung` to the observations of `ladder`."""
    if counted.steps > 0:
        ladder.observe(
            rung,
            users=counted.users,
            steps=counted.steps,
            step_ms=counted.step_ms,
            round_tokens=counted.round_tokens,
        )


@contextmanager
def steer_rung(engine: Engine, ladder: Ladder, *, users: int, tick_s: float = TICK_S) -> Iterator[Counter[int]]:
    """Keep `engine` on the rung that `ladder` chooses while the body runs: at first for `users` users, then, every
    `tick_s`, for the number of users that the engine counted.

    Yields how many times each rung was chosen; the counts are complete after the body.

    Raises:
        ReplicaError: the engine refused a plan or stopped answering; raised after the body.
    """
    rung, chosen, ended = ladder.choose(users=users), Counter[int](), threading.Event()
    failures: list[ReplicaError] = []
    chosen[rung] += 1
    engine.set_plan(rung=rung, rows=0)

    def run() -> None:
        try:
            _steer(engine, ladder, chosen, rung, lambda: ended.wait(tick_s))
        except ReplicaError as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="ladder", daemon=True)
    thread.start()
    try:
        yield chosen
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]


def _steer(engine: Engine, ladder: Ladder, chosen: Counter[int], rung: int, wait: Callable[[], bool]) -> None:
    """Choose the rung anew after each `wait`, until that returns True; `rung` is in force at first."""
    before = engine.totals()
    while not wait():
        after = engine.totals()
        counted, before = after.since(before), after
        update_ladder(ladder, rung, counted)
        if counted.steps == 0:
            continue
        best = ladder.choose(users=counted.users, now=rung)
        chosen[best] += 1
        if best != rung:
            engine.set_plan(rung=best, rows=0)
        rung = best
