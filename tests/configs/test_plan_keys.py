"""Plan keys: one codec for what ranks are sent; a message is the whole plan, and what breaks a rule has the reason."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.configs.contracts.plan import Plan, ReplicaPlan, TierCaps, TierPromise
from sparktier.configs.errors import ContractError
from sparktier.configs.plan_keys import (
    MAX_TIERS,
    EnginePlan,
    Rung,
    TierTerms,
    engine_plan,
    keys_of,
    plan_of,
    refusal,
    refusals,
)

IN_FORCE = EnginePlan(epoch=2, version=3, rung=Rung.CHAIN, rows=9, tiers={0: TierTerms(), 1: TierTerms(80.0, 2.0, 4)})
NEWER = keys_of(EnginePlan(epoch=2, version=4))

COUNTS = st.integers(1, 1 << 53)
RATES = st.floats(0, exclude_min=True, allow_infinity=False)
TERMS = st.builds(TierTerms, st.none() | RATES, RATES, st.none() | st.integers(0, 1 << 53))


@st.composite
def plans(draw: st.DrawFn) -> EnginePlan:
    tiers = draw(st.dictionaries(st.integers(0, 63), TERMS, min_size=1, max_size=4))
    return EnginePlan(
        epoch=draw(COUNTS),
        version=draw(COUNTS),
        ttl_ms=draw(st.none() | COUNTS),
        rung=draw(st.sampled_from(Rung)),
        rows=draw(st.integers(0, 1 << 53)),
        default_tier=draw(st.sampled_from(sorted(tiers))),
        tiers=tiers,
    )


@settings(max_examples=100, deadline=None)
@given(plans())
def test_what_is_encoded_is_decoded(plan: EnginePlan) -> None:
    keys = keys_of(plan)
    assert refusals(keys, before=EnginePlan()) == []
    assert plan_of(keys) == plan


@settings(max_examples=50, deadline=None)
@given(plans())
def test_numbers_that_became_doubles_on_their_way_say_the_same(plan: EnginePlan) -> None:
    keys = {key: float(value) for key, value in keys_of(plan).items()}
    assert refusals(keys, before=EnginePlan()) == []
    assert plan_of(keys) == plan


def test_a_plan_replaces_all_of_the_one_before() -> None:
    keys = NEWER | {"sparktier_rung": 1.0, "sparktier_tier2_weight": 0.5}
    assert refusals(keys, before=IN_FORCE) == []
    expected = EnginePlan(
        epoch=2, version=4, rung=Rung.CHAIN_SHORT, rows=0, tiers={0: TierTerms(), 2: TierTerms(weight=0.5)}
    )
    assert plan_of(keys) == expected


@pytest.mark.parametrize(
    ("epoch", "version", "rises"), [(1, 9, False), (2, 2, False), (2, 3, False), (2, 4, True), (3, 1, True)]
)
def test_epoch_and_version_must_rise(epoch: int, version: int, rises: bool) -> None:
    found = refusals(NEWER | {"sparktier_epoch": epoch, "sparktier_plan_version": version}, before=IN_FORCE)
    assert (not found) is rises
    assert rises or f"which are (2, 3) (found ({epoch}, {version}))" in found[0]


@pytest.mark.parametrize(
    "key", ["sparktier_epoch", "sparktier_plan_version", "sparktier_rung", "sparktier_default_tier"]
)
def test_what_every_plan_says_must_be_given(key: str) -> None:
    keys = dict(NEWER)
    del keys[key]
    assert f"{key} must be given" in refusals(keys, before=IN_FORCE)[0]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"dspark_force_budget_frac": 0.5}, "is no key of a plan"),
        ({"sparktier_tier0_floor": 3}, "is no key of a plan of schema 2"),
        ({"sparktier_tier5_cap": 2}, "tier 5 must be listed with its weight, as it is given a cap"),
        ({"sparktier_tier5_promise": 80.0}, "tier 5 must be listed with its weight, as it is given a promise"),
        ({"sparktier_default_tier": 5}, "must be a tier that the plan lists: [0] (found 5)"),
    ],
)
def test_what_is_no_whole_plan_is_refused(keys: dict[str, float], word: str) -> None:
    assert word in refusals(NEWER | keys, before=IN_FORCE)[0]


def test_a_message_of_schema_1_is_refused_with_a_sentence() -> None:
    schema_1 = {"sparktier_plan_version": 7, "sparktier_rung": 2, "sparktier_rows": 40, "sparktier_tier0_floor": 1}
    [key, missing] = refusals(schema_1, before=IN_FORCE)
    assert key == "sparktier_tier0_floor is no key of a plan of schema 2"
    assert missing.startswith("sparktier_epoch, sparktier_default_tier must be given")


def test_a_rung_above_the_engine_s_ladder_is_refused() -> None:
    [found] = refusals(NEWER | {"sparktier_rung": 3}, before=IN_FORCE, highest=Rung.CHAIN)
    assert found == "sparktier_rung must be at most 2, the highest rung of this engine (found 3)"


def test_everything_in_force_is_read_back() -> None:
    assert IN_FORCE.read_back() == {
        "epoch": 2,
        "plan_version": 3,
        "ttl_ms": None,
        "rung": 2,
        "rows": 9,
        "seats": None,
        "default_tier": 0,
        "tiers": {
            "0": {"promise_tok_s": None, "weight": 1.0, "cap_tokens": None},
            "1": {"promise_tok_s": 80.0, "weight": 2.0, "cap_tokens": 4},
        },
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
        ("sparktier_rows", float("inf")),
        ("sparktier_rows", 1e300),
        ("sparktier_epoch", 0),
        ("sparktier_ttl_ms", 0),
        ("sparktier_plan_version", True),
        ("sparktier_default_tier", -1),
        ("sparktier_tier0_cap", -1),
        ("sparktier_tier64_cap", 1),
        ("sparktier_tier4096_weight", 1),
        ("sparktier_tier1_weight", 0),
        ("sparktier_tier1_weight", float("nan")),
        ("sparktier_tier1_promise", 0.0),
        ("sparktier_tier1_promise", float("inf")),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_value(key: str, value: object) -> None:
    reason = refusal(key, value)
    assert reason is not None
    assert key in reason


def cluster_plan(**replica: Any) -> Plan:
    mine = {"replica_id": "replica-1", "url": "http://h:1", "state": "serving", "rung": 2, "rows": 40}
    return Plan(
        epoch=3,
        version=7,
        issued_at_ms=1,
        ttl_ms=5000,
        default_tier=1,
        tiers={0: TierPromise(name="slow"), 1: TierPromise(name="fast", promise_tok_s=120.0, weight=2.0)},
        replicas=(ReplicaPlan(**{**mine, "tiers": {1: TierCaps(cap_users=3, cap_tokens=4)}, **replica}),),
    )


def test_a_replica_takes_its_own_part_of_a_plan() -> None:
    assert engine_plan(cluster_plan(), "replica-1") == EnginePlan(
        epoch=3,
        version=7,
        ttl_ms=5000,
        rung=Rung.CHAIN,
        rows=40,
        default_tier=1,
        tiers={0: TierTerms(), 1: TierTerms(120.0, 2.0, 4)},
    )


@pytest.mark.parametrize(("change", "word"), [({"replica_id": "replica-0"}, "must list replica-1"), ({"rung": 4}, "3")])
def test_a_plan_that_is_not_for_a_replica_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ContractError, match=word):
        engine_plan(cluster_plan(**change), "replica-1")


@pytest.mark.parametrize(
    ("yields", "caps", "seats"), [(True, (3, 2), 5), (True, (0, 0), 1), (True, (3, None), None), (False, (3, 2), None)]
)
def test_seats_are_the_sum_of_the_caps_where_a_tier_yields(
    yields: bool, caps: tuple[int | None, int | None], seats: int | None
) -> None:
    tiers = {0: TierPromise(name="slow", yields=yields), 1: TierPromise(name="fast", promise_tok_s=120.0)}
    plan = cluster_plan(tiers={tier: TierCaps(cap_users=cap) for tier, cap in enumerate(caps)})
    found = engine_plan(plan.model_copy(update={"tiers": tiers}), "replica-1")
    assert found.seats == seats
    assert plan_of(keys_of(found)) == found
