"""The plan in force on a rank: taken whole or not at all, over after its time on the rank's own clock, read back."""

from types import SimpleNamespace
from typing import Any

import pytest

from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms, keys_of
from sparktier.serving.engine.plan.in_force import PlanExpired, PlanInForce, plan_in_force

STRICT = TierTerms(120.0, weight=2.0, cap_tokens=4)
PLAN = EnginePlan(
    epoch=2, version=5, ttl_ms=1000, rung=Rung.TREE, rows=40, default_tier=0, tiers={0: TierTerms(), 1: STRICT}
)


class Clock:
    """Monotonic seconds that a test sets."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def rank(*, safe: Rung = Rung.CHAIN_SHORT) -> tuple[PlanInForce, Clock]:
    clock = Clock()
    return PlanInForce(EnginePlan(rung=Rung.TREE), highest=Rung.TREE, safe=safe, clock=clock), clock


def test_a_plan_is_taken_whole_and_read_back_with_its_age() -> None:
    found, clock = rank()
    assert found.age_ms is None
    assert found.take(keys_of(PLAN)) is None
    clock.now_s += 0.25
    assert found.plan == PLAN
    assert found.read_back() == {**PLAN.read_back(), "age_ms": 250, "expired": False, "refused": None, "latched": None}


@pytest.mark.parametrize(
    "change",
    [
        {"sparktier_epoch": 1},
        {"sparktier_plan_version": 5},
        {"sparktier_rung": 4},
        {"sparktier_tier7_cap": 1},
        {"sparktier_tier1_promise": float("nan")},
        {"sparktier_tier0_floor": 1},
    ],
    ids=str,
)
def test_what_is_refused_changes_nothing_and_says_why(change: dict[str, float]) -> None:
    found, clock = rank()
    found.take(keys_of(PLAN))
    clock.now_s += 0.5
    newer = EnginePlan(epoch=2, version=6, rung=Rung.OFF, tiers={0: TierTerms(), 1: TierTerms()})
    reason = found.take(keys_of(newer) | change)
    assert reason is not None
    assert str(next(iter(change))).split("_cap")[0].removeprefix("sparktier_")[:5] in reason.replace("tier 7", "tier7")
    assert found.refused == reason
    assert (found.plan, found.age_ms) == (PLAN, 500)
    assert found.take(keys_of(newer)) is None
    assert found.refused is None


def test_a_cap_does_not_survive_a_plan_that_omits_it() -> None:
    found, _ = rank()
    found.take(keys_of(PLAN))
    found.take(keys_of(EnginePlan(epoch=2, version=6, tiers={0: TierTerms(), 1: TierTerms(120.0, weight=2.0)})))
    assert found.plan.tiers[1].cap_tokens is None
    found.take(keys_of(EnginePlan(epoch=2, version=7)))
    assert set(found.plan.tiers) == {0}


@pytest.mark.parametrize(("rung", "safe", "after"), [(3, 1, 1), (3, 0, 0), (1, 2, 1), (0, 1, 0)])
def test_after_its_time_the_safe_rung_is_a_ceiling(rung: int, safe: int, after: int) -> None:
    found, clock = rank(safe=Rung(safe))
    found.take(keys_of(PLAN) | {"sparktier_rung": rung})
    clock.now_s += 1.0
    assert found.time_is_over() is None
    clock.now_s += 0.1
    over = found.time_is_over()
    assert over == PlanExpired(epoch=2, version=5)
    assert found.plan.rung == rung
    found.expire(over)
    assert found.expired
    assert found.time_is_over() is None
    # Promises, weights, caps and rows are those of the plan.
    assert (found.plan.rung, found.plan.tiers, found.plan.rows) == (after, PLAN.tiers, 40)


def test_a_newer_plan_has_a_time_of_its_own() -> None:
    found, clock = rank()
    found.take(keys_of(PLAN))
    clock.now_s += 1.1
    over = found.time_is_over()
    assert over is not None
    found.take(keys_of(PLAN) | {"sparktier_plan_version": 6})
    # Told of the plan before it, which took longer to arrive.
    found.expire(over)
    assert not found.expired
    assert found.plan.rung == Rung.TREE
    clock.now_s += 1.1
    again = found.time_is_over()
    assert again == PlanExpired(epoch=2, version=6)
    found.expire(again)
    found.take(keys_of(PLAN) | {"sparktier_plan_version": 7})
    assert (found.expired, found.plan.rung) == (False, Rung.TREE)


def test_a_refused_plan_gives_no_time() -> None:
    found, clock = rank()
    found.take(keys_of(PLAN))
    clock.now_s += 0.9
    assert found.take(keys_of(PLAN)) is not None
    clock.now_s += 0.2
    assert found.time_is_over() is not None


def test_a_plan_without_a_time_holds() -> None:
    found, clock = rank()
    clock.now_s += 1e9
    assert found.time_is_over() is None
    found.take(keys_of(EnginePlan(epoch=1, version=1)))
    clock.now_s += 1e9
    assert found.time_is_over() is None


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's controller of a scheduler whose worker takes plans, with our hooks and its own handlers unused."""
    from sglang.srt.managers.scheduler_components import internal_state

    from sparktier.serving.engine.plan import control

    kind = internal_state.SchedulerInternalStateController
    for name in ("set_internal_state", "_add_speculative"):
        monkeypatch.setattr(kind, name, getattr(kind, name))
    control.install()
    worker = SimpleNamespace(takes_plans=True, highest_rung=Rung.TREE, plan=None)
    worker.set_plan = lambda plan: setattr(worker, "plan", plan)
    none = SimpleNamespace(is_none=lambda: True)
    return kind(SimpleNamespace(draft_worker=worker, spec_algorithm=none), False)


def sent(controller: Any, keys: dict[str, float]) -> tuple[bool, dict[str, Any]]:
    state: dict[str, Any] = {}
    updated = controller.set_internal_state(SimpleNamespace(server_args=keys)).updated
    controller._add_speculative(state)
    return updated, state["sparktier"]


def test_a_refusal_is_read_back_until_a_plan_is_taken(controller: Any) -> None:
    assert sent(controller, keys_of(PLAN))[0]
    updated, found = sent(controller, keys_of(PLAN))
    assert not updated
    assert (found["epoch"], found["plan_version"]) == (2, 5)
    assert "must rise above those in force" in found["refused"]
    assert controller.scheduler.draft_worker.plan == PLAN
    updated, found = sent(controller, keys_of(EnginePlan(epoch=2, version=6)))
    assert updated
    assert (found["plan_version"], set(found["tiers"]), found["refused"]) == (6, {"0"}, None)


@pytest.mark.parametrize("knob", ["speculative_accept_threshold_single", "speculative_accept_threshold_acc"])
def test_lossy_thresholds_are_refused_while_it_runs(controller: Any, knob: str) -> None:
    for keys in ({knob: 0.5}, keys_of(PLAN) | {knob: 0.5}):
        updated, found = sent(controller, keys)
        assert not updated
        assert knob in found["refused"]
    assert controller.scheduler.draft_worker.plan is None


def test_an_engine_of_fixed_depth_takes_no_plan(controller: Any) -> None:
    controller.scheduler.draft_worker.takes_plans = False
    updated, found = sent(controller, keys_of(PLAN))
    assert not updated
    assert "depth is fixed" in found["refused"]


def test_an_engine_that_drafts_nothing_takes_promises_and_the_rung_off(controller: Any) -> None:
    controller.scheduler.draft_worker = None
    updated, found = sent(controller, keys_of(PLAN))
    assert not updated
    assert "at most 0" in found["refused"]
    updated, found = sent(controller, keys_of(PLAN) | {"sparktier_rung": 0})
    assert updated
    assert found["tiers"]["1"] == {"promise_tok_s": 120.0, "weight": 2.0, "cap_tokens": 4}


def test_every_rank_puts_the_safe_rung_in_force_when_it_is_told(controller: Any) -> None:
    """Rank 0's poll tells what is over to all ranks; a rank whose own clock is behind is told all the same."""
    from sglang.utils import TypeBasedDispatcher

    from sparktier.serving.engine.plan import control

    clock = Clock()
    scheduler = controller.scheduler
    scheduler.sparktier_plan = PlanInForce(EnginePlan(), highest=Rung.TREE, safe=Rung.CHAIN_SHORT, clock=clock)
    scheduler._poll_timeout_aborts = lambda: ["an abort"]
    scheduler._request_dispatcher = TypeBasedDispatcher([])
    control.watch_plan(scheduler)
    sent(controller, keys_of(PLAN))
    assert scheduler._poll_timeout_aborts() == ["an abort"]
    assert scheduler.draft_worker.plan.rung == Rung.TREE
    clock.now_s += 1.1
    _, told = scheduler._poll_timeout_aborts()
    clock.now_s -= 1.1
    assert scheduler._request_dispatcher(told) is None
    assert scheduler.draft_worker.plan.rung == Rung.CHAIN_SHORT
    assert scheduler._poll_timeout_aborts() == ["an abort"]


def test_a_latch_holds_rung_0_under_plans_of_any_version_until_it_is_ended() -> None:
    found, clock = rank()
    found.latch("wrong tokens")
    assert found.plan.rung == Rung.OFF
    for version in (5, 9):
        assert found.take(keys_of(PLAN) | {"sparktier_plan_version": version}) is None
        # Promises, weights, caps and rows are those of the plan.
        assert (found.plan.rung, found.plan.tiers, found.plan.rows) == (Rung.OFF, PLAN.tiers, 40)
    assert found.take(keys_of(PLAN) | {"sparktier_epoch": 7}) is None
    found.latch("another cause")
    assert found.read_back()["latched"] == "wrong tokens"
    clock.now_s += 2.0
    over = found.time_is_over()
    assert over is not None
    found.expire(over)
    assert found.plan.rung == Rung.OFF
    found.resume()
    assert (found.plan.rung, found.read_back()["latched"]) == (Rung.CHAIN_SHORT, None)
    found.take(keys_of(PLAN) | {"sparktier_epoch": 8})
    assert found.plan.rung == Rung.TREE


def test_every_rank_latches_when_rank_0_is_asked(controller: Any) -> None:
    from sglang.utils import TypeBasedDispatcher

    from sparktier.serving.engine.plan import control

    scheduler = controller.scheduler
    scheduler._poll_timeout_aborts = lambda: ["an abort"]
    scheduler._request_dispatcher = TypeBasedDispatcher([])
    control.watch_plan(scheduler)
    sent(controller, keys_of(PLAN))
    plan_in_force(scheduler).ask_latch("wrong tokens")
    assert scheduler.draft_worker.plan.rung == Rung.TREE
    _, told = scheduler._poll_timeout_aborts()
    assert scheduler._request_dispatcher(told) is None
    assert scheduler.draft_worker.plan.rung == Rung.OFF
    assert scheduler._poll_timeout_aborts() == ["an abort"]


def test_an_order_latches_and_resumes_between_two_steps(controller: Any) -> None:
    sent(controller, keys_of(PLAN))
    updated, found = sent(controller, {"sparktier_latch": 1})
    assert (updated, found["rung"], found["latched"]) == (True, 0, "an operator ordered it")
    assert controller.scheduler.draft_worker.plan.rung == Rung.OFF
    # A plan on its way doesn't end it.
    assert sent(controller, keys_of(PLAN) | {"sparktier_plan_version": 6})[1]["rung"] == 0
    assert controller.scheduler.draft_worker.plan.rung == Rung.OFF
    updated, found = sent(controller, {"sparktier_latch": 0})
    assert (updated, found["rung"], found["latched"]) == (True, 3, None)
    assert controller.scheduler.draft_worker.plan.rung == Rung.TREE


@pytest.mark.parametrize("keys", [{"sparktier_latch": 2}, {"sparktier_latch": 1, "sparktier_rung": 0}], ids=str)
def test_a_wrong_order_changes_nothing(controller: Any, keys: dict[str, float]) -> None:
    updated, found = sent(controller, keys)
    assert (updated, found["latched"]) == (False, None)


def test_a_rank_has_one_plan_in_force() -> None:
    scheduler = SimpleNamespace(draft_worker=SimpleNamespace(highest_rung=Rung.CHAIN))
    found = plan_in_force(scheduler)
    assert plan_in_force(scheduler) is found
    assert found.plan == EnginePlan(rung=Rung.CHAIN)
