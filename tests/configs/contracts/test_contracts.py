"""Contracts: every message survives JSON unchanged, and one that can't be true, or is of another schema, is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from sparktier.configs.contracts.decision import Decision
from sparktier.configs.contracts.ended import EndedPage
from sparktier.configs.contracts.message import Message, read_message
from sparktier.configs.contracts.plan import Plan
from sparktier.configs.contracts.room import Room
from sparktier.configs.contracts.signals import Signals
from sparktier.configs.errors import ContractError
from support.inputs.messages import DECISIONS, ENDED, PLANS, ROOMS, SIGNALS

SAMPLES = Path(__file__).parent / "samples"
KINDS: dict[str, type[Message]] = {
    "signals": Signals,
    "plan": Plan,
    "decision": Decision,
    "room": Room,
    "ended": EndedPage,
}


@settings(max_examples=30, deadline=None)
@given(SIGNALS)
def test_signals_survive_json(data: dict[str, Any]) -> None:
    signals = Signals.model_validate(data)
    assert read_message(Signals, signals.model_dump_json()) == signals


@settings(max_examples=30, deadline=None)
@given(PLANS)
def test_plans_survive_json(data: dict[str, Any]) -> None:
    plan = Plan.model_validate(data)
    assert read_message(Plan, plan.model_dump_json()) == plan


@settings(max_examples=30, deadline=None)
@given(ROOMS)
def test_room_survives_json(data: dict[str, Any]) -> None:
    room = Room.model_validate(data)
    assert read_message(Room, room.model_dump_json()) == room


@settings(max_examples=30, deadline=None)
@given(DECISIONS)
def test_decisions_survive_json_under_their_wire_names(data: dict[str, Any]) -> None:
    decision = Decision.model_validate(data)
    text = decision.model_dump_json()
    assert read_message(Decision, text) == decision
    assert {"from", "to"} <= json.loads(text).keys()


@settings(max_examples=30, deadline=None)
@given(ENDED)
def test_ended_requests_survive_json(data: dict[str, Any]) -> None:
    page = EndedPage.model_validate(data)
    assert read_message(EndedPage, page.model_dump_json()) == page


def sample(name: str) -> str:
    return (SAMPLES / f"{name}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["signals", "plan", "decision"])
def test_messages_of_schema_1_are_refused_with_a_sentence(name: str) -> None:
    with pytest.raises(ContractError, match=r"schema_version must be 2 \(found 1\)") as caught:
        read_message(KINDS[name], sample(f"schema-1-{name}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_stored_messages_of_schema_2_are_read(name: str) -> None:
    """Every field is in the sample, so one that is renamed or changes its form breaks this."""
    text = sample(f"schema-2-{name}")
    found = read_message(KINDS[name], text)
    assert json.loads(found.model_dump_json()) == json.loads(text)
    wire_names = {field.alias or name for name, field in KINDS[name].model_fields.items()}
    assert json.loads(text).keys() == wire_names


@pytest.mark.parametrize("text", ["", "[]", "{}", '"Plan"', "[" * 100_000, '{"schema_version": true}'])
def test_what_is_no_message_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ContractError, match="Plan") as caught:
        read_message(Plan, text)
    assert "\n" not in str(caught.value)


def test_all_that_breaks_a_rule_is_told_in_one_sentence() -> None:
    wrong = json.loads(sample("schema-2-plan")) | {"epoch": 0, "ttl_ms": "long"}
    with pytest.raises(ContractError, match=r"epoch: .*; ttl_ms: "):
        read_message(Plan, json.dumps(wrong))


def test_not_a_number_is_refused() -> None:
    wrong = sample("schema-2-plan").replace('"promise_tok_s": 120.0', '"promise_tok_s": NaN')
    with pytest.raises(ContractError, match="finite"):
        read_message(Plan, wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 1},
        {"prefill_frac": 1.01},
        {"prefill_frac": float("nan")},
        {"rung": 16},
        {"rung": True},
        {"rows": -1},
        {"epoch": -1},
        {"shares": {64: {"promise_tok_s": None, "cap_tokens": 4, "weight": 1.0}}},
        {"shares": {1: {"promise_tok_s": None, "cap_tokens": 4, "weight": 0.0}}},
        {"shares": {1: {"promise_tok_s": 0.0, "cap_tokens": 4, "weight": 1.0}}},
        {"at_ms": 1.5},
        {"replica_id": "Not a name"},
        {"ranks": []},
        {"step_ms": {0: float("inf")}},
        {"accept_by_position": {64: [0.1]}},
        {"accept_by_position": {0: [1.2]}},
        {"tok_s_per_user": {0: {"p5": 3.0, "p50": 2.0}}},
        {"accepted_tokens": {0: {"p5": 3.0, "p50": 2.0}}},
        {"met": {0: [2, 1]}},
        {"met": {0: [1]}},
        {"canary": {"state": "watching", "scored_tokens": 1, "alarms": 2}},
        {"canary": {"state": "fine", "scored_tokens": 1, "alarms": 0}},
        {"unheard_of": 1},
    ],
    ids=str,
)
def test_signals_that_cannot_be_true_are_refused(change: dict[str, Any]) -> None:
    good = read_message(Signals, sample("schema-2-signals")).model_dump()
    Signals.model_validate(good)
    with pytest.raises(ValidationError):
        Signals.model_validate(good | change)


def test_a_rank_is_not_told_of_twice() -> None:
    good = read_message(Signals, sample("schema-2-signals")).model_dump()
    with pytest.raises(ValidationError, match="ranks"):
        Signals.model_validate(good | {"ranks": [good["ranks"][0]] * 2})


def plan() -> dict[str, Any]:
    return read_message(Plan, sample("schema-2-plan")).model_dump()


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 0},
        {"version": 0},
        {"ttl_ms": 0},
        {"tiers": {}},
        {"tiers": {64: {"name": "far"}}},
        {"default_tier": 9},
        {"tiers": {0: {"name": "same"}, 1: {"name": "same"}}},
    ],
    ids=str,
)
def test_plans_that_cannot_be_true_are_refused(change: dict[str, Any]) -> None:
    Plan.model_validate(plan())
    with pytest.raises(ValidationError):
        Plan.model_validate(plan() | change)


@pytest.mark.parametrize(
    "change",
    [
        {"url": "h:1"},
        {"state": "gone"},
        {"tiers": {9: {"cap_users": 1}}},
        {"tiers": {1: {"cap_users": -1}}},
        {"tiers": {1: {"cap_tokens": 1.5}}},
    ],
    ids=str,
)
def test_a_replica_of_a_plan_that_cannot_be_true_is_refused(change: dict[str, Any]) -> None:
    good = plan()
    with pytest.raises(ValidationError):
        Plan.model_validate(good | {"replicas": [good["replicas"][0] | change]})


def test_a_plan_lists_a_replica_once() -> None:
    good = plan()
    with pytest.raises(ValidationError, match="replicas"):
        Plan.model_validate(good | {"replicas": [good["replicas"][0]] * 2})


@pytest.mark.parametrize("change", [{"kept_from": 4}, {"last": 2}, {"kept_from": 0}], ids=str)
def test_ended_requests_outside_of_what_is_kept_are_refused(change: dict[str, Any]) -> None:
    good = read_message(EndedPage, sample("schema-2-ended")).model_dump()
    with pytest.raises(ValidationError):
        EndedPage.model_validate(good | change)
    with pytest.raises(ValidationError, match="rising"):
        EndedPage.model_validate(good | {"ended": [good["ended"][0]] * 2})


def test_messages_are_frozen() -> None:
    with pytest.raises(ValidationError):
        read_message(Plan, sample("schema-2-plan")).version = 2  # type: ignore[misc]
