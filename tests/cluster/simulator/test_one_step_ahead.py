"""The comparison of kept steps with the simulated engine: equal where nothing differs, and it sees what does."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from sparktier.cluster.arrays import Floats
from sparktier.cluster.simulator.answers import Answer
from sparktier.cluster.simulator.policies import Policy, StepView, policy_of
from sparktier.cluster.simulator.sim_engine import SimEngine, SimRequest, SimStep
from sparktier.cluster.simulator.users import SteppingEngine, serve
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import PaceRules
from sparktier.configs.step_times import reference_table
from sparktier.serving.bench.tiers import grid
from sparktier.serving.bench.tiers.settings import TableSettings
from support.oracles.one_step_ahead import LEAST_MARGIN, Before, Kept, PassedOn, Run, compared, margin

USERS, NODES, PROMISE_TOK_S = 6, 11, 5.0
TABLE = TableSettings(
    step_times="avx2", nodes=NODES, rung=3, users=(USERS,), promise_factors=(0.8,), strict_fracs=(0.5,), kv_tokens=9999
)
TIMES = StepTimeModel(reference_table("avx2"))


@cache
def answer(user: int, turn: int) -> Answer:
    rng = np.random.default_rng([user, turn])
    survival = -np.sort(-rng.uniform(0.0, 0.9, (30, NODES)), axis=1)
    survival[-1] = 0.0
    accepted = np.minimum(np.arange(NODES + 1), rng.integers(0, 3, (30, 1)))
    return Answer(survival, np.minimum(accepted, 29 - np.arange(30)[:, None]), "made", is_chain=False)


def request(user: int, turn: int) -> SimRequest:
    strict = user % 2
    return SimRequest((user, turn), strict, PROMISE_TOK_S * strict, 20, answer(user, turn))


class Traced(PassedOn):
    """A simulated engine whose steps are kept as those of the real one are."""

    def __init__(self, engine: SimEngine) -> None:
        super().__init__(engine)
        self._sim = engine
        self.kept: list[Kept] = []

    def step(self, *, now_ms: float) -> SimStep:
        slots = self._sim._slots
        state = zip(
            slots.requests, slots._submitted, slots.first_ms, slots.delivered, slots.seen, slots.age_steps, strict=True
        )
        before = {
            asked.key: Before(submitted, first, int(delivered), seen if age == 1 else None)
            for asked, submitted, first, delivered, seen, age in state
        }
        curves, live = deepcopy(self._sim._curves), self._live()
        step = self._sim.step(now_ms=now_ms)
        ended = [(each.request.key, each.submitted_ms, each.first_ms, each.last_ms) for each in step.ended]
        self.kept.append(Kept(now_ms, step, ended, before, curves, live, []))
        return step

    def _live(self) -> Mapping[tuple[int, ...], Floats]:
        slots = self._sim._slots
        return {asked.key: row for asked, row in zip(slots.requests, slots.drafts()[0], strict=True)}


def traced(name: str) -> tuple[Policy, list[Kept], Mapping[tuple[int, ...], SimRequest]]:
    policy, asked = policy_of(name, PaceRules(), strict_weight=1.0), {}

    def noted(user: int, turn: int) -> SimRequest:
        return asked.setdefault((user, turn), request(user, turn))

    engine = Traced(SimEngine(policy, times=TIMES, true_times=TIMES, limits=grid.limits_of(TABLE, USERS)))
    serve(engine, noted, users=USERS, turns=2)
    return policy, engine.kept, asked


def free(policy: Policy) -> list[SimStep]:
    engine: SteppingEngine = SimEngine(policy, times=TIMES, true_times=TIMES, limits=grid.limits_of(TABLE, USERS))
    steps: list[SimStep] = []
    serve(engine, request, users=USERS, turns=2, on_step=lambda _now_ms, step: steps.append(step))
    return steps


def run(name: str, broken: Policy | None = None) -> Run:
    policy, kept, asked = traced(name)
    used = broken or policy
    return compared(kept, asked, free(used), policy=used, promise_tok_s=PROMISE_TOK_S, table=TABLE, users=USERS)


@pytest.mark.parametrize("name", ["blind", "tiered"])
def test_the_same_engine_is_the_same_one_step_ahead_and_to_the_end(name: str) -> None:
    found = run(name)
    assert found.steps > 40
    assert found.requests >= USERS * 3
    assert (found.unlike, found.unlike_free, found.errors[-1]) == ([], None, 0.0)


def test_another_policy_is_seen() -> None:
    found = run("tiered", replace(policy_of("blind", PaceRules(), strict_weight=1.0)))
    assert len(found.unlike) > 10
    assert found.unlike_free is not None
    assert all(each["margin"] > LEAST_MARGIN for each in found.unlike)


def test_no_change_below_the_margin_moves_a_row() -> None:
    policy, rng = policy_of("tiered", PaceRules(), strict_weight=1.0), np.random.default_rng(0)
    moved, margins = 0, []
    for _ in range(200):
        view = random_view(rng)
        least, rows = margin(view, policy, TIMES, 3), policy.rows(view, TIMES, 3)
        margins.append(least)
        for _ in range(5):
            assert np.array_equal(policy.rows(nudged(view, 0.99 * least, rng), TIMES, 3), rows)
            moved += not np.array_equal(policy.rows(nudged(view, 20 * least, rng), TIMES, 3), rows)
    assert moved > 300
    assert 1e-5 < np.median(margins) < 0.1


def random_view(rng: np.random.Generator) -> StepView:
    live, lagged = (-np.sort(-rng.uniform(0.0, 0.9, (USERS, NODES)), axis=1) for _ in range(2))
    return StepView(
        lagged=lagged,
        live=live,
        most_rows=np.full(USERS, NODES + 1),
        promise_tok_s=np.where(np.arange(USERS) % 2, PROMISE_TOK_S, 0.0),
        since_first_s=rng.uniform(0.0, 9.0, USERS),
        delivered_tokens=rng.integers(1, 50, USERS),
        context_tokens=100,
    )


def nudged(view: StepView, least: float, rng: np.random.Generator) -> StepView:
    """The view with every survival off by `least`, up or down; each row falls as before."""
    lagged, live = (
        -np.sort(-each * (1 + least * rng.choice([-1.0, 1.0], each.shape)), axis=1) for each in (view.lagged, view.live)
    )
    return replace(view, lagged=lagged, live=live)
