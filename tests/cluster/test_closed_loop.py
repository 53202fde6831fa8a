"""The policy steers simulated replicas through load steps and failures, and is compared with every fixed rung."""

import numpy as np
import pytest

from sparktier.cluster.policy.policy_types import PolicyConfig, TierRule
from sparktier.cluster.simulator.answers import Answer, chain_answer
from sparktier.cluster.simulator.fleet.fleet import Fleet
from sparktier.cluster.simulator.fleet.fleet_policies import FleetPolicy, fixed_rung, fleet_policy
from sparktier.cluster.simulator.fleet.fleet_types import Failure, FleetRun, FleetSpec, Offered, ReplicaSpec, Trouble
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.step_times import reference_table
from support.steering.signal_maker import STANDARD, STRICT, policy_config

NODES = 5
TIMES = StepTimeModel(reference_table("avx2"))
PROMISE_TOK_S = 5.0
CHAINS = {0: 0, 1: 2, 2: 5}
CONFIG: PolicyConfig = policy_config(
    drafted=CHAINS,
    tiers={
        STANDARD: TierRule(name="standard"),
        STRICT: TierRule(name="strict", promise_tok_s=PROMISE_TOK_S, weight=2.0),
    },
)


SPEC = ReplicaSpec(TIMES, TIMES, max_running=16, kv_tokens=16_384, chunk_tokens=256, nodes=NODES)


class DrawnTexts:
    """Texts as hard as they are from beginning to end."""

    def answer(self, rng: np.random.Generator, tokens: int) -> Answer:
        places = tokens - 1
        chance = float(np.clip(rng.normal(0.7, 0.1), 0.2, 0.95))
        survival = np.tile(np.cumprod(np.full(NODES, chance)), (places, 1))
        accepted = np.minimum(rng.geometric(1.0 - chance, places) - 1, NODES)
        return chain_answer(survival, accepted, kind="drawn")


def traffic(seed: int, *, replicas: int, until_ms: float) -> list[Offered]:
    """Users of both tiers whose rates step up and down."""
    rng, now_ms, found = np.random.default_rng(seed), 0.0, []
    while now_ms < until_ms:
        phase = int(4 * now_ms / until_ms)
        per_replica_s = (0.3, 0.6, 0.35, 0.7)[phase]
        now_ms += 1000.0 * float(rng.exponential(1.0 / (per_replica_s * replicas)))
        tier = STRICT if rng.random() < 0.3 else STANDARD
        found.append(Offered(now_ms, tier, int(rng.integers(20, 100)), int(rng.integers(41, 121))))
    return found


def compare(seed: int, *, replicas: int, until_ms: float) -> tuple[FleetRun, dict[int, FleetRun], int]:
    arrivals = traffic(seed, replicas=replicas, until_ms=0.8 * until_ms)
    failures = [Failure(0.3 * until_ms, 1, 20_000.0), Failure(0.6 * until_ms, 0, 15_000.0)]
    offered = sum(each.tier == STRICT for each in arrivals)
    spec = FleetSpec(replicas, SPEC, CONFIG, trouble=Trouble(failures=failures))

    def run(policy: FleetPolicy) -> FleetRun:
        return Fleet(spec, policy, arrivals, DrawnTexts(), seed=seed).run(until_ms)

    return run(fleet_policy("sparktier", CONFIG)), {rung: run(fixed_rung(rung)) for rung in CHAINS}, offered


def attainment(run: FleetRun, offered: int) -> float:
    kept = [each for each in run.results if each.offered.tier == STRICT and (each.speed_tok_s or 0.0) >= PROMISE_TOK_S]
    return len(kept) / offered


def tokens(run: FleetRun) -> int:
    return sum(count for _, count in run.tokens)


def require_worth(steered: FleetRun, fixed: dict[int, FleetRun], offered: int) -> None:
    """At least the attainment of every fixed rung, with as many tokens, less 5%."""
    shown = {rung: (attainment(run, offered), tokens(run)) for rung, run in fixed.items()}
    best, ours = max(shown.values()), (attainment(steered, offered), tokens(steered))
    assert ours[0] >= best[0], (ours, shown)
    assert ours[1] >= 0.95 * best[1], (ours, shown)


def test_steered_replicas_are_worth_the_best_fixed_rung() -> None:
    require_worth(*compare(0, replicas=3, until_ms=150_000.0))


@pytest.mark.prove
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_eight_steered_replicas_are_worth_the_best_fixed_rung(seed: int) -> None:
    require_worth(*compare(seed, replicas=8, until_ms=200_000.0))
