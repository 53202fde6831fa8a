"""Plan keys: a message is the whole plan, older ones and those that break a rule are refused with the reason."""

from types import SimpleNamespace
from typing import Any

import pytest

from sparktier.configs.plan_keys import (
    MAX_TIERS,
    Plan,
    Rung,
    TierShare,
    is_plan_key,
    plan_of,
    refusal,
    refusals,
)

IN_FORCE = Plan(version=3, rung=Rung.CHAIN, rows=9, tiers={1: TierShare(floor=1, cap=4, weight=2.0)})


def test_a_plan_replaces_all_of_the_one_before() -> None:
    keys = {"sparktier_plan_version": 4, "sparktier_rung": 1.0, "sparktier_tier2_weight": 0.5, "sparktier_tier2_cap": 2}
    assert refusals(keys, before=IN_FORCE) == []
    plan = plan_of(keys, before=IN_FORCE)
    assert plan == Plan(version=4, rung=Rung.CHAIN_SHORT, rows=0, tiers={2: TierShare(cap=2, weight=0.5)})


def test_a_plan_without_a_version_keeps_the_number() -> None:
    assert plan_of({"sparktier_rung": 0}, before=IN_FORCE) == Plan(version=3, rung=Rung.OFF)


@pytest.mark.parametrize(("version", "older"), [(2, True), (3, False), (4, False)])
def test_an_older_plan_is_refused(version: int, older: bool) -> None:
    found = refusals({"sparktier_plan_version": version, "sparktier_rung": 1}, before=IN_FORCE)
    assert bool(found) is older
    assert not older or "which is 3 (found 2)" in found[0]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"sparktier_rows": 3}, "sparktier_rung must be given"),
        ({"sparktier_rung": 1, "dspark_force_budget_frac": 0.5}, "is no plan key"),
        ({"sparktier_rung": 1, "sparktier_tier0_floor": 3, "sparktier_tier0_cap": 2}, "must not exceed"),
    ],
)
def test_what_is_no_whole_plan_is_refused(keys: dict[str, float], word: str) -> None:
    assert word in refusals(keys, before=IN_FORCE)[0]


def test_everything_in_force_is_read_back() -> None:
    assert IN_FORCE.read_back() == {
        "plan_version": 3,
        "rung": 2,
        "rows": 9,
        "shares": {"1": {"floor": 1, "cap": 4, "weight": 2.0}},
    }


def test_tier_ids_are_those_of_the_settings() -> None:
    assert MAX_TIERS == 64
    assert refusal("sparktier_tier63_cap", 1) is None
    assert "at most 63" in str(refusal("sparktier_tier64_cap", 1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sparktier_rung", 4),
        ("sparktier_rung", -1),
        ("sparktier_rung", "1"),
        ("sparktier_rows", 1.5),
        ("sparktier_rows", float("nan")),
        ("sparktier_rows", 1e300),
        ("sparktier_plan_version", True),
        ("sparktier_tier0_floor", -1),
        ("sparktier_tier64_cap", 1),
        ("sparktier_tier4096_cap", 1),
        ("sparktier_tier1_weight", -0.1),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_value(key: str, value: object) -> None:
    assert is_plan_key(key)
    reason = refusal(key, value)
    assert reason is not None
    assert key in reason


@pytest.mark.parametrize("key", ["sparktier", "sparktier_tier_cap", "sparktier_tier1_size", "dspark_force_budget_frac"])
def test_other_keys_are_not_ours(key: str) -> None:
    assert not is_plan_key(key)


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's controller of a scheduler whose worker takes plans, with our hooks and its own handlers unused."""
    from sglang.srt.managers.scheduler_components import internal_state

    from sparktier.serving.engine.speculation import control

    kind = internal_state.SchedulerInternalStateController
    for name in ("set_internal_state", "_add_speculative"):
        monkeypatch.setattr(kind, name, getattr(kind, name))
    control.install()
    worker = SimpleNamespace(takes_plans=True, plan=IN_FORCE, highest_rung=Rung.TREE)
    worker.set_plan = lambda plan: setattr(worker, "plan", plan)
    none = SimpleNamespace(is_none=lambda: True)
    return kind(SimpleNamespace(draft_worker=worker, spec_algorithm=none), False)


def sent(controller: Any, **keys: float) -> tuple[bool, dict[str, Any]]:
    state: dict[str, Any] = {}
    updated = controller.set_internal_state(SimpleNamespace(server_args=keys)).updated
    controller._add_speculative(state)
    return updated, state["sparktier"]


def test_a_refusal_is_read_back_until_a_plan_is_taken(controller: Any) -> None:
    updated, found = sent(controller, sparktier_plan_version=2, sparktier_rung=1)
    assert not updated
    assert found["plan_version"] == 3
    assert "below that in force" in found["refused"]
    updated, found = sent(controller, sparktier_plan_version=4, sparktier_rung=1)
    assert updated
    assert (found["plan_version"], found["shares"], found["refused"]) == (4, {}, None)


@pytest.mark.parametrize("knob", ["speculative_accept_threshold_single", "speculative_accept_threshold_acc"])
def test_lossy_thresholds_are_refused_while_it_runs(controller: Any, knob: str) -> None:
    updated, found = sent(controller, **{knob: 0.5})
    assert not updated
    assert knob in found["refused"]
