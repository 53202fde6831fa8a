"""The rung of a running engine follows its load, and the ladder observes the steps it runs."""

import pytest

from sparktier.cluster.rung_policy import Ladder
from sparktier.configs.errors import ReplicaError
from sparktier.serving.bench.counters import Totals
from sparktier.serving.bench.steering import steer_rung
from support.deployment import wait_until

TREE_MS = {1: 120.0, 16: 420.0}


class Crowding:
    """An engine that serves one user, and sixteen once `crowded`; ten steps go by whenever its counters are read."""

    def __init__(self) -> None:
        self.users, self.plans = 1, list[float]()
        self._totals = Totals(0, 0, 0, 0, {"verify": 0.0})

    def set_plan(self, **keys: float) -> None:
        self.plans.append(keys["rung"])

    def totals(self) -> Totals:
        tree = self.plans[-1] == 3
        length, step_ms = (2.0, TREE_MS[self.users]) if tree else (1.0, {1: 100.0, 16: 130.0}[self.users])
        before, rounds = self._totals, 10 * self.users
        parts = {"verify": before.part_ms["verify"] + 10 * step_ms}
        self._totals = Totals(before.steps + 10, before.rounds + rounds, 0, before.tokens + length * rounds, parts)
        return self._totals


def test_the_rung_follows_the_load() -> None:
    ladder, engine = Ladder(), Crowding()
    for users, tree_ms in TREE_MS.items():
        ladder.observe(0, users=users, steps=50, step_ms=100 + 2 * (users - 1), round_tokens=1.0)
        ladder.observe(3, users=users, steps=50, step_ms=tree_ms, round_tokens=2.0)
    with steer_rung(engine, ladder, users=1, tick_s=0.01) as chosen:
        wait_until(lambda: chosen[3] > 2, timeout_s=30, what=lambda: f"trees: {chosen}")
        assert engine.plans == [3]
        engine.users = 16
        wait_until(lambda: chosen[0] > 2, timeout_s=30, what=lambda: f"off: {chosen}")
    assert engine.plans == [3, 0]


def test_what_it_runs_teaches_the_ladder() -> None:
    ladder, engine = Ladder(), Crowding()
    engine.users = 16
    ladder.observe(0, users=16, steps=50, step_ms=130.0, round_tokens=1.0)
    ladder.observe(3, users=16, steps=5, step_ms=100.0, round_tokens=2.0)  # a lucky five
    with steer_rung(engine, ladder, users=16, tick_s=0.01) as chosen:
        wait_until(lambda: chosen[0] > 0, timeout_s=30, what=lambda: f"off: {chosen}")
    assert engine.plans[:2] == [3, 0]


def test_a_refused_plan_is_no_silent_end_of_the_steering() -> None:
    """Otherwise the bench would report as the ladder's speed that of an engine left on one rung."""
    ladder, engine = Ladder(), Crowding()
    engine.users = 16
    ladder.observe(0, users=16, steps=50, step_ms=130.0, round_tokens=1.0)
    ladder.observe(3, users=16, steps=5, step_ms=100.0, round_tokens=2.0)
    taken = engine.set_plan

    def set_plan(**keys: float) -> None:
        if engine.plans:
            raise ReplicaError("Every rank must take the plan.")
        taken(**keys)

    engine.set_plan = set_plan  # type: ignore[method-assign]
    with (
        pytest.raises(ReplicaError, match="must take the plan"),
        steer_rung(engine, ladder, users=16, tick_s=0.01) as chosen,
    ):
        wait_until(lambda: chosen[0] > 0, timeout_s=30, what=lambda: f"off: {chosen}")
