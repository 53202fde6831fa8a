"""The simulated cluster loses no request, is never idle while it could serve one, and gives the same bytes again."""

import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.cluster.policy.policy_types import PolicyConfig, TierRule
from sparktier.cluster.simulator.answers import Answer, chain_answer
from sparktier.cluster.simulator.fleet.fleet import Fleet
from sparktier.cluster.simulator.fleet.fleet_policies import POLICIES, fleet_policy
from sparktier.cluster.simulator.fleet.fleet_types import (
    Failure,
    FleetRun,
    FleetSpec,
    Offered,
    ReplicaSpec,
    Trouble,
)
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.step_times import reference_table

TIMES = StepTimeModel(reference_table("v4-flash-fitted"))
NODES, KV_TOKENS = 5, 4_000
CONFIG = PolicyConfig(
    tiers={
        0: TierRule(name="flex"),
        1: TierRule(name="standard", promise_tok_s=60.0, ttft_ms=800),
        2: TierRule(name="fast", promise_tok_s=110.0, ttft_ms=400, weight=2.0),
    },
    default_tier=0,
    drafted={0: 0, 2: NODES},
    most_users=8,
    hold_ms=2_000,
)
REPLICA = ReplicaSpec(TIMES, TIMES, max_running=8, kv_tokens=KV_TOKENS, chunk_tokens=256, nodes=NODES)
SPEC = FleetSpec(2, REPLICA, CONFIG, gateways=2)


class DrawnTexts:
    """Answers of one difficulty each."""

    def answer(self, rng: np.random.Generator, tokens: int) -> Answer:
        places = tokens - 1
        chance = float(rng.uniform(0.4, 0.95))
        accepted = np.minimum(rng.geometric(1.0 - chance, places) - 1, NODES)
        return chain_answer(np.tile(chance ** np.arange(1, NODES + 1), (places, 1)), accepted, kind="drawn")


def load(seed: int, requests: int, rate_s: float) -> list[Offered]:
    rng = np.random.default_rng(seed)
    at_ms = np.cumsum(rng.exponential(1000.0 / rate_s, requests))
    return [
        Offered(
            at_ms=float(at),
            tier=int(rng.choice(3, p=[0.4, 0.4, 0.2])),
            prompt_tokens=int(rng.integers(1, 1200)),
            output_tokens=int(rng.integers(1, 120)),
            prefix=(int(rng.integers(3)), int(rng.integers(100, 110))),
        )
        for at in at_ms
    ]


def run(policy: str, offered: list[Offered], spec: FleetSpec = SPEC, *, check: bool = False) -> FleetRun:
    fleet = Fleet(spec, fleet_policy(policy, spec.config), offered, DrawnTexts(), seed=3)
    return fleet.run(120_000.0, require_sound if check else lambda _: None)


def require_sound(fleet: Fleet) -> None:
    """No replica stands still with something to do, none waits where there is room, KV and users are within bounds."""
    for replica in fleet.replicas:
        assert not replica.up or replica.busy or replica.engine.idle
        assert replica.engine.kv_tokens <= replica.spec.kv_tokens
        assert len(replica.users) <= replica.spec.max_running
        assert replica.box.users == Counter(user.tier for user in replica.users.values())
    for tier, waiting in fleet.queues.numbers().items():
        assert not waiting or all(replica.free(tier) <= 0 for replica in fleet.replicas)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.floats(1.0, 60.0), st.sampled_from(sorted(POLICIES)))
def test_every_request_ends_once_and_no_room_is_left_unused(seed: int, requests: int, rate: float, name: str) -> None:
    offered = load(seed, requests, rate)
    trouble = Trouble(failures=[Failure(500.0, 0, 700.0), Failure(900.0, 1, 300.0)], plan_loss_frac=0.1)
    fleet = Fleet(replace(SPEC, trouble=trouble), fleet_policy(name, CONFIG), offered, DrawnTexts(), seed=3)
    found = fleet.run(2_000.0 + 100.0 * requests, require_sound)
    there = [number for waiting in fleet.queues.numbers().values() for number in waiting]
    there += [key[0] for replica in fleet.replicas for key in replica.users]
    to_come = [place for place, each in enumerate(offered) if each.at_ms > fleet.now_ms]
    unfinished = [result.number for result in found.results if result.fate == "unfinished"]
    assert sorted(there + to_come) == unfinished
    assert [result.offered for result in found.results] == offered
    assert all(result.fate in ("served", "refused", "failed", "unfinished") for result in found.results)
    for result in found.results:
        if result.fate == "served":
            assert result.first_ms is not None
            assert result.last_ms is not None
            assert offered[result.number].at_ms <= result.first_ms <= result.last_ms
    if not any(result.fate in ("failed", "unfinished") for result in found.results):
        served = sum(each.offered.output_tokens for each in found.results if each.fate == "served")
        assert sum(tokens for _, tokens in found.tokens) == served


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    offered = load(5, 40, 20.0)
    spec = replace(SPEC, trouble=Trouble(signal_loss_frac=0.3, plan_loss_frac=0.3, failures=[Failure(700.0, 1, 400.0)]))
    one, other = (json.dumps(asdict(run(name, offered, spec))) for _ in range(2))
    assert one == other


def test_a_request_that_finds_no_room_in_time_is_refused() -> None:
    offered = [Offered(0.0, 2, 10, 100) for _ in range(30)]
    found = run("dspark", offered, replace(SPEC, replicas=1))
    assert [each.fate for each in found.results[:8]] == ["served"] * 8
    assert "refused" in {each.fate for each in found.results[8:]}


def test_a_failure_cuts_those_who_had_tokens_and_moves_the_others() -> None:
    offered = [Offered(0.0, 0, 10, 400), Offered(300.0, 0, 1200, 50)]
    spec = replace(SPEC, replicas=2, trouble=Trouble(failures=[Failure(310.0, 0, 500.0), Failure(310.0, 1, 500.0)]))
    found = run("dspark", offered, spec)
    assert [each.fate for each in found.results] == ["failed", "served"]
    assert found.results[1].first_ms is not None
    assert found.results[1].first_ms > 800.0


def test_a_known_prefix_is_not_prefilled_again() -> None:
    offered = [
        Offered(0.0, 0, 1100, 2, (1, 2)),
        Offered(500.0, 0, 1100, 2, (1, 2)),
        Offered(1000.0, 0, 1100, 2, (3, 4)),
    ]
    found = run("dspark", offered, replace(SPEC, replicas=1))
    first, again, other = (each.ttft_ms for each in found.results)
    assert first is not None
    assert again is not None
    assert other == pytest.approx(first)
    assert again < 0.5 * first


def test_the_more_a_policy_knows_the_fewer_rows_it_verifies_in_vain() -> None:
    offered = load(1, 150, 12.0)
    knowing, blind = run("oracle", offered), run("dspark", offered)
    assert knowing.rows / knowing.row_requests < blind.rows / blind.row_requests
