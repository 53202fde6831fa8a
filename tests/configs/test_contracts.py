"""Contracts: every message survives JSON unchanged, and one that can't be true is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sparktier.configs.contracts import Decision, Plan, Signals

REPLICAS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,8}[a-z0-9])?", fullmatch=True)
COUNTS = st.integers(0, 1 << 40)
TIERS = st.integers(0, 63)
RUNGS = st.integers(0, 15)
FRACTIONS = st.floats(0, 1)
RATES = st.floats(0, 1e9)


def by_tier(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[int, Any]]:
    return st.dictionaries(TIERS, values, max_size=4)


RANKS = st.fixed_dictionaries(
    {
        "dp_rank": COUNTS,
        "running": by_tier(COUNTS),
        "queued": by_tier(COUNTS),
        "kv_used_frac": FRACTIONS,
        "context_tokens_p50": COUNTS,
    }
)
SIGNALS = st.fixed_dictionaries(
    {
        "replica_id": REPLICAS,
        "at_ms": COUNTS,
        "plan_version": COUNTS,
        "rung": RUNGS,
        "rows": COUNTS,
        "shares": by_tier(st.fixed_dictionaries({"floor_tokens": COUNTS, "cap_tokens": COUNTS, "weight": RATES})),
        "ranks": st.lists(RANKS, min_size=1, max_size=3, unique_by=lambda rank: rank["dp_rank"]),
        "step_ms": st.dictionaries(RUNGS, RATES, max_size=4),
        "prefill_frac": FRACTIONS,
        "accept_by_position": by_tier(st.lists(FRACTIONS, max_size=5)),
        "tok_s_per_user": by_tier(st.tuples(RATES, RATES).map(lambda pair: {"p5": min(pair), "p50": max(pair)})),
        "canary": st.tuples(COUNTS, COUNTS).map(
            lambda pair: {"state": "watching", "scored": max(pair), "alarms": min(pair)}
        ),
    }
)
SHARES = st.tuples(COUNTS, COUNTS, COUNTS, RATES).map(
    lambda parts: {
        "cap_users": parts[0],
        "floor_tokens": min(parts[1:3]),
        "cap_tokens": max(parts[1:3]),
        "weight": parts[3],
    }
)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    tiers = draw(st.dictionaries(TIERS, st.text(max_size=8), min_size=1, max_size=4))
    replica = st.fixed_dictionaries(
        {
            "replica_id": REPLICAS,
            "url": st.just("http://10.0.0.1:30000"),
            "state": st.sampled_from(["serving", "draining", "off"]),
            "rung": RUNGS,
            "rows": COUNTS,
            "tiers": st.dictionaries(st.sampled_from(sorted(tiers)), SHARES, max_size=3),
        }
    )
    replicas = draw(st.lists(replica, max_size=3, unique_by=lambda item: item["replica_id"]))
    version, issued, ttl = draw(st.tuples(st.integers(1, 1 << 40), COUNTS, st.integers(1, 1 << 30)))
    return {"version": version, "issued_at_ms": issued, "ttl_ms": ttl, "tiers": tiers, "replicas": replicas}


JSON = st.recursive(
    st.none() | st.booleans() | COUNTS | FRACTIONS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DEPTHS = st.fixed_dictionaries({"rung": RUNGS, "rows": COUNTS})
DECISIONS = st.fixed_dictionaries(
    {
        "at_ms": COUNTS,
        "replica_id": REPLICAS,
        "from": DEPTHS,
        "to": DEPTHS,
        "reason": st.text(min_size=1, max_size=9),
        "inputs": st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    }
)


@given(SIGNALS)
def test_signals_survive_json(data: dict[str, Any]) -> None:
    signals = Signals.model_validate(data)
    assert Signals.model_validate_json(signals.model_dump_json()) == signals


@given(plans())
def test_plans_survive_json(data: dict[str, Any]) -> None:
    plan = Plan.model_validate(data)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@given(DECISIONS)
def test_decisions_survive_json_under_their_wire_names(data: dict[str, Any]) -> None:
    decision = Decision.model_validate(data)
    text = decision.model_dump_json()
    assert Decision.model_validate_json(text) == decision
    assert {"from", "to"} <= json.loads(text).keys()


SIGNAL = {
    "replica_id": "r0",
    "at_ms": 1,
    "plan_version": 0,
    "rung": 0,
    "rows": 0,
    "shares": {0: {"floor_tokens": 0, "cap_tokens": 4, "weight": 1.0}},
    "ranks": [{"dp_rank": 0, "running": {0: 1}, "queued": {}, "kv_used_frac": 0.5, "context_tokens_p50": 9}],
    "step_ms": {0: 10.0},
    "prefill_frac": 0.1,
    "accept_by_position": {0: [0.9, 0.5]},
    "tok_s_per_user": {0: {"p5": 1.0, "p50": 2.0}},
    "canary": {"state": "watching", "scored": 3, "alarms": 0},
}
SHARE = {"cap_users": 1, "floor_tokens": 1, "cap_tokens": 4, "weight": 1.0}
REPLICA = {"replica_id": "r0", "url": "http://h:1", "state": "serving", "rung": 1, "rows": 8, "tiers": {0: SHARE}}
PLAN = {"version": 1, "issued_at_ms": 1000, "ttl_ms": 500, "tiers": {0: "standard"}, "replicas": [REPLICA]}


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"prefill_frac": 1.01},
        {"prefill_frac": float("nan")},
        {"rung": 16},
        {"rung": True},
        {"rows": -1},
        {"shares": {64: {"floor_tokens": 0, "cap_tokens": 4, "weight": 1.0}}},
        {"at_ms": 1.5},
        {"replica_id": "Not a name"},
        {"ranks": []},
        {"ranks": SIGNAL["ranks"] * 2},
        {"step_ms": {0: float("inf")}},
        {"accept_by_position": {64: [0.1]}},
        {"accept_by_position": {0: [1.2]}},
        {"tok_s_per_user": {0: {"p5": 3.0, "p50": 2.0}}},
        {"canary": {"state": "watching", "scored": 1, "alarms": 2}},
        {"canary": {"state": "fine", "scored": 1, "alarms": 0}},
        {"unheard_of": 1},
    ],
)
def test_signals_that_cannot_be_true_are_refused(change: dict[str, Any]) -> None:
    Signals.model_validate(SIGNAL)
    with pytest.raises(ValidationError):
        Signals.model_validate(SIGNAL | change)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"ttl_ms": 0},
        {"tiers": {}},
        {"tiers": {64: "far"}},
        {"replicas": [REPLICA, REPLICA]},
        {"replicas": [REPLICA | {"url": "h:1"}]},
        {"replicas": [REPLICA | {"state": "gone"}]},
        {"replicas": [REPLICA | {"tiers": {0: SHARE | {"floor_tokens": 5}}}]},
        {"replicas": [REPLICA | {"tiers": {0: SHARE | {"weight": -1.0}}}]},
    ],
)
def test_plans_that_cannot_be_true_are_refused(change: dict[str, Any]) -> None:
    Plan.model_validate(PLAN)
    with pytest.raises(ValidationError):
        Plan.model_validate(PLAN | change)


def test_a_plan_holds_until_its_time_is_over() -> None:
    plan = Plan.model_validate(PLAN)
    assert not plan.expired(1500)
    assert plan.expired(1501)


def test_messages_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate(PLAN).version = 2  # type: ignore[misc]
