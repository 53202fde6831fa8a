"""Plan keys: what they change, and what is refused."""

import pytest

from sparktier.serving.engine.speculation.plan import Plan, Rung, TierShare, is_plan_key, refusal


def test_keys_change_what_they_name_and_nothing_else() -> None:
    plan = Plan(version=3, rung=Rung.CHAIN, rows=9, tiers={1: TierShare(floor=1, cap=4, weight=2.0)})
    changed = plan.updated(
        {
            "sparktier_plan_version": 4,
            "sparktier_rung": 1.0,
            "sparktier_tier1_cap": 2,
            "sparktier_tier2_weight": 0.5,
            "sparktier_tier2_floor": 1,
        }
    )
    assert changed == Plan(
        version=4,
        rung=Rung.CHAIN_SHORT,
        rows=9,
        tiers={1: TierShare(floor=1, cap=2, weight=2.0), 2: TierShare(floor=1, weight=0.5)},
    )
    assert plan.version == 3


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
        ("sparktier_tier256_cap", 1),
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
