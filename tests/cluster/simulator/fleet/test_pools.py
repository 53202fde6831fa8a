"""Static pools are sized with the caution that the controller has, and by the split that the traffic needs."""

from dataclasses import replace

import numpy as np
import pytest

from sparktier.cluster.policy.policy_types import PolicyConfig, TierRule
from sparktier.cluster.simulator.fleet.fleet_types import FleetSpec, Offered, ReplicaSpec
from sparktier.cluster.simulator.fleet.pools import pooled_plans
from sparktier.cluster.simulator.published_text import REPORTED, PublishedTexts, published_figures
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.contracts.plan import ReplicaPlan
from sparktier.configs.step_times import reference_table

TIMES = StepTimeModel(reference_table("v4-flash-fitted"))
TEXTS = PublishedTexts(published_figures(REPORTED), nodes=5)
CONFIG = PolicyConfig(
    tiers={0: TierRule(name="flex"), 1: TierRule(name="fast", promise_tok_s=110.0)},
    default_tier=0,
    drafted={0: 0, 2: 5},
    most_users=64,
)
SPEC = FleetSpec(6, ReplicaSpec(TIMES, TIMES, 64, 10**7, 256, nodes=5, prefills=False), CONFIG)


def plans(caution_frac: float, fast: int) -> list[ReplicaPlan]:
    """Pools for 20 requests of each second, `fast` of them promised; answers of 200 tokens."""
    config = CONFIG.model_copy(update={"caution_frac": caution_frac})
    offered = [Offered(50.0 * place, int(place % 20 < fast), 1, 200) for place in range(400)]
    return pooled_plans(replace(SPEC, config=config), offered, TEXTS, span_ms=20_000.0)


def fast_caps(found: list[ReplicaPlan]) -> list[int]:
    return [plan.tiers[1].cap_users for plan in found if plan.tiers[1].cap_users]


def test_the_more_caution_the_fewer_users_of_a_promise_on_a_replica() -> None:
    caps = [max(fast_caps(plans(caution, 10))) for caution in (0.0, 0.5, 1.0)]
    assert caps[0] > caps[1] > caps[2]


@pytest.mark.parametrize("caution", [0.0, 1.0])
def test_each_replica_serves_one_tier_and_more_traffic_gets_more_of_them(caution: float) -> None:
    few, many = plans(caution, 4), plans(caution, 16)
    assert all(np.count_nonzero([caps.cap_users for caps in plan.tiers.values()]) == 1 for plan in few + many)
    assert 1 <= len(fast_caps(few)) < len(fast_caps(many)) < 6
