"""The simulated engine: who is admitted, what a step costs and yields, and that its rows are the planner's."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from sparktier.cluster.simulator.answers import Answer, chain_answer
from sparktier.cluster.simulator.policies import Policy, StepView, policy_of
from sparktier.cluster.simulator.sim_engine import EngineLimits, SimEngine, SimRequest, SimStep
from sparktier.cluster.simulator.users import Served, serve
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, PaceRules, planned_rows
from sparktier.configs.errors import ConfigError
from sparktier.configs.step_times import reference_table

AVX2 = StepTimeModel(reference_table("avx2"))
LIMITS = EngineLimits(max_running=4, kv_tokens=10_000, chunk_tokens=64, nodes=5, rung=2, live_shares=True)


@cache
def answer(tokens: int, *, seed: int = 0, nodes: int = 5) -> Answer:
    rng = np.random.default_rng([seed, tokens])
    survival = np.cumprod(rng.uniform(0.3, 0.95, (tokens - 1, nodes)), axis=1)
    return chain_answer(survival, (rng.random((tokens - 1, 1)) < survival).sum(axis=1), kind="made")


def request(user: int, turn: int = 0, *, tokens: int = 40, prompt: int = 20, promise: float = 0.0) -> SimRequest:
    return SimRequest((user, turn), int(promise > 0), promise, prompt, answer(tokens, seed=100 * user + turn))


def policy(name: str) -> Policy:
    return policy_of(name, PaceRules(), strict_weight=2.0)


def engine(name: str = "blind", **limits: int) -> SimEngine:
    return SimEngine(policy(name), times=AVX2, true_times=AVX2, limits=replace(LIMITS, **limits))


def steps_of(sim: SimEngine) -> list[SimStep]:
    steps, now_ms = [], 0.0
    while not sim.idle:
        steps.append(sim.step(now_ms=now_ms))
        now_ms += steps[-1].took_ms
    return steps


@pytest.mark.parametrize("name", ["off", "chain", "blind", "static-4", "floors", "adaserve", "tiered"])
def test_every_policy_gives_every_request_its_whole_answer(name: str) -> None:
    sim = engine(name)
    asked = [request(user, tokens=20 + user, promise=9.0 * (user % 2)) for user in range(7)]
    for each in asked:
        sim.submit(each, now_ms=0.0)
    steps = steps_of(sim)
    gained: dict[tuple[int, ...], int] = {}
    for step in steps:
        for key, tokens in zip(step.keys, step.tokens.tolist(), strict=True):
            gained[key] = gained.get(key, 0) + tokens
    assert gained == {each.key: each.answer.tokens for each in asked}
    assert sorted(ended.request.key for step in steps for ended in step.ended) == sorted(gained)


def test_a_step_takes_what_the_table_says() -> None:
    sim = engine("off")
    sim.submit(request(0, prompt=30), now_ms=0.0)
    sim.submit(request(1, prompt=20), now_ms=0.0)
    prefill, decode = sim.step(now_ms=0.0), sim.step(now_ms=0.0)
    assert prefill.took_ms == AVX2.prefill_ms(50)
    assert prefill.tokens.tolist() == [1, 1]
    assert decode.took_ms == AVX2.step_ms(rung=0, requests=2, rows=np.array([2]), context_tokens=52)[0]


def test_a_long_prompt_is_prefilled_in_chunks() -> None:
    sim = engine(chunk_tokens=64)
    sim.submit(request(0, prompt=150), now_ms=0.0)
    took = [sim.step(now_ms=0.0) for _ in range(3)]
    assert [step.took_ms for step in took] == [AVX2.prefill_ms(chunk) for chunk in (64, 64, 22)]
    assert [len(step.keys) for step in took] == [0, 0, 1]


def test_no_more_run_than_there_is_room_for() -> None:
    sim = engine(max_running=3)
    for user in range(6):
        sim.submit(request(user), now_ms=0.0)
    assert max(len(step.rows) for step in steps_of(sim)) == 3


def test_a_request_waits_until_the_kv_of_its_whole_answer_fits() -> None:
    sim = engine(kv_tokens=130)
    for user in range(4):
        sim.submit(request(user, tokens=40, prompt=20), now_ms=0.0)
    steps = steps_of(sim)
    assert max(len(step.rows) for step in steps) == 2
    assert sum(len(step.ended) for step in steps) == 4


def test_rows_are_those_of_the_planner_with_a_total_one_step_old() -> None:
    views: list[StepView] = []
    shipped = policy("tiered")

    def watched(view: StepView, times: StepTimeModel, rung: int) -> np.ndarray:
        views.append(view)
        return shipped.rows(view, times, rung)

    sim = SimEngine(replace(shipped, rows=watched), times=AVX2, true_times=AVX2, limits=LIMITS)
    for user in range(4):
        sim.submit(request(user, prompt=10), now_ms=0.0)
    steps = steps_of(sim)[1:]
    assert len(views) == len(steps)
    for before, view, step in zip(views, views[1:], steps[1:], strict=False):
        if len(before.live) == len(view.live):
            assert np.array_equal(view.lagged, before.live)
        ones = np.ones(len(view.live))
        lagged, live = Offers(view.lagged, view.most_rows, ones), Offers(view.live, view.most_rows, ones)
        assert step.rows.tolist() == planned_rows(lagged, live, AVX2, rung=2).tolist()


def test_an_unknown_policy_is_refused() -> None:
    for name in ("fastest", "static-", "static--1", "static-nan"):
        with pytest.raises(ConfigError, match="must be one of"):
            policy(name)


def served(name: str, *, promise: float) -> Served:
    def asks(user: int, turn: int) -> SimRequest:
        return request(user, turn, tokens=64, promise=promise if user < 2 else 0.0)

    return serve(engine(name, max_running=8), asks, users=8, turns=2)


def test_a_promise_speeds_up_who_has_it() -> None:
    def ratio(name: str) -> float:
        ended = served(name, promise=1000.0).ended
        speeds = [[each.speed_tok_s for each in ended if each.request.tier == tier] for tier in (1, 0)]
        return float(np.mean(speeds[0]) / np.mean(speeds[1]))

    assert ratio("tiered") > 1.2 * ratio("blind")


def test_users_ask_until_each_has_its_counted_answers() -> None:
    found = served("blind", promise=0.0)
    keys = sorted(each.request.key for each in found.ended)
    assert keys == [(user, turn) for user in range(8) for turn in (1, 2)]
    assert served("blind", promise=0.0) == found
