"""Has the canary watch a stepped engine, whole and with a fault, and notes what it finds and how fast it latches."""

import contextlib
from typing import Any

from sparktier.cluster.canary import CanaryRules
from sparktier.configs.plan_keys import EnginePlan, Rung, keys_of
from sparktier.serving.engine.canary.watch import Canary, watch
from sparktier.serving.engine.plan import control
from sparktier.serving.engine.plan.in_force import plan_in_force
from sparktier.serving.engine.stepping import SteppedEngine
from support.generation import random_prompts

# All answers may be scored: the bound on steps has a test of its own.
EAGER = CanaryRules(tokens_frac=1.0, steps_frac=1.0)
MOST_TOKENS = 1200
NEW_TOKENS = 48


def watched(engine: SteppedEngine, fault: contextlib.AbstractContextManager[object]) -> dict[str, Any]:
    """Return what the canary found of a whole engine, then of one with `fault`, and what an alarm came to."""
    scheduler = engine.scheduler
    control.watch_plan(scheduler)
    canary = watch(scheduler, rules=EAGER)
    assert canary is not None
    ran = _note_rungs(scheduler)
    plans = _Plans(engine)
    plans.send(Rung.TREE)
    _answer(engine, canary, plans, ran, "whole", seed=11)
    found = {"whole": canary.report(0, 0).model_dump()}
    with fault:
        steps = _answer(engine, canary, plans, ran, "fault", seed=12)
    found |= {"fault": canary.report(0, 0).model_dump(), "rungs_from_alarm": steps}
    # Plans of higher numbers change nothing; an order does.
    plans.send(Rung.TREE)
    found["rung_under_new_plans"] = int(engine.worker.plan.rung)
    plan_in_force(scheduler).resume()
    plans.send(Rung.TREE)
    found["rung_after_resume"] = int(engine.worker.plan.rung)
    return found


def _note_rungs(scheduler: Any) -> list[int]:
    """Return a list that grows by the rung of each decode step."""
    ran: list[int] = []
    run_batch = scheduler.run_batch

    def noting(batch: Any) -> Any:
        result = run_batch(batch)
        if (record := getattr(result, "record", None)) is not None:
            ran.append(record.rung)
        return result

    scheduler.run_batch = noting
    return ran


class _Plans:
    """Sends plans as the controller does, each with a higher version."""

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine, self._version = engine, 0

    def send(self, rung: Rung) -> None:
        self._version += 1
        keys = keys_of(EnginePlan(epoch=5, version=self._version, rung=rung))
        plan = plan_in_force(self._engine.scheduler)
        assert plan.take(keys) is None
        self._engine.worker.set_plan(plan.plan)


def _answer(engine: SteppedEngine, canary: Canary, plans: _Plans, ran: list[int], name: str, *, seed: int) -> list[int]:
    """Decode until the canary has seen enough or alarmed, under a new plan every few steps.

    Returns the rungs of the decode steps after the alarm, none without one.
    """
    scored, rungs, round_number = canary.budget.scored_tokens, [], 0
    while canary.budget.scored_tokens < scored + MOST_TOKENS and len(rungs) < 6:
        round_number += 1
        for number, prompt in enumerate(random_prompts(6, seed=1000 * seed + round_number, longest=60)):
            sampling = {"temperature": 0.8, "sampling_seed": number} if number % 2 else {}
            key = f"{name}-{round_number}-{number}"
            engine.add(key, prompt, new_tokens=NEW_TOKENS, cache_key=key, **sampling)
        number = 0
        while _step(engine):
            number += 1
            if number % 5 == 0:
                plans.send(Rung.TREE if number % 10 else Rung.CHAIN)
            if canary.alarms and engine.scheduler.last_batch.forward_mode.is_decode():
                rungs.append(ran[-1])
    return rungs


def _step(engine: SteppedEngine) -> bool:
    """One pass of the scheduler's loop: what rank 0's poll tells all ranks, then a step."""
    scheduler = engine.scheduler
    for told in scheduler._poll_timeout_aborts():
        scheduler._request_dispatcher(told)
    return engine.step()
