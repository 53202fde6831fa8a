"""The policy steers simulated replicas through load steps and failures, and is compared with every fixed rung."""

import numpy as np
import pytest

from sparktier.cluster.policy.policy_types import PolicyConfig, TierRule
from sparktier.cluster.simulator.answers import chain_answer
from sparktier.cluster.simulator.sim_engine import SimRequest
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.step_times import reference_table
from support.steering.signal_maker import STANDARD, STRICT, policy_config
from support.steering.steered_cluster import NODES, Arrival, Run, run_cluster

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


def request(rng: np.random.Generator, number: int, tier: int) -> SimRequest:
    """A request whose text is as hard as it is from beginning to end."""
    places = int(rng.integers(40, 120))
    chance = float(np.clip(rng.normal(0.7, 0.1), 0.2, 0.95))
    survival = np.tile(np.cumprod(np.full(NODES, chance)), (places, 1))
    accepted = np.minimum(rng.geometric(1.0 - chance, places) - 1, NODES)
    return SimRequest(
        key=(number,),
        tier=tier,
        promise_tok_s=PROMISE_TOK_S if tier == STRICT else 0.0,
        prompt_tokens=int(rng.integers(20, 100)),
        answer=chain_answer(survival, accepted, kind="drawn"),
    )


def traffic(seed: int, *, replicas: int, until_ms: float) -> list[Arrival]:
    """Users of both tiers whose rates step up and down."""
    rng, now_ms, found = np.random.default_rng(seed), 0.0, []
    while now_ms < until_ms:
        phase = int(4 * now_ms / until_ms)
        per_replica_s = (0.3, 0.6, 0.35, 0.7)[phase]
        now_ms += 1000.0 * float(rng.exponential(1.0 / (per_replica_s * replicas)))
        tier = STRICT if rng.random() < 0.3 else STANDARD
        found.append(Arrival(now_ms, request(rng, len(found), tier)))
    return found


def compare(seed: int, *, replicas: int, until_ms: float) -> tuple[Run, dict[int, Run], int]:
    arrivals = traffic(seed, replicas=replicas, until_ms=0.8 * until_ms)
    failures = [(0.3 * until_ms, 1, 20_000.0), (0.6 * until_ms, 0, 15_000.0)]
    offered = sum(each.request.tier == STRICT for each in arrivals)
    options = {"replicas": replicas, "until_ms": until_ms, "failures": failures}
    steered = run_cluster(CONFIG, TIMES, arrivals, **options)
    fixed = {rung: run_cluster(CONFIG, TIMES, arrivals, fixed_rung=rung, **options) for rung in CHAINS}
    return steered, fixed, offered


def require_worth(steered: Run, fixed: dict[int, Run], offered: int) -> None:
    """No promised user above caps, and at least the attainment of every fixed rung with as many tokens, less 5%."""
    assert steered.above_caps == 0
    best = max(fixed.values(), key=lambda run: (run.attainment(STRICT, offered), run.tokens))
    shown = {rung: (run.attainment(STRICT, offered), run.tokens, run.left) for rung, run in fixed.items()}
    ours = (steered.attainment(STRICT, offered), steered.tokens, steered.left)
    assert ours[0] >= best.attainment(STRICT, offered), (ours, shown)
    assert ours[1] >= 0.95 * best.tokens, (ours, shown)


def test_steered_replicas_are_worth_the_best_fixed_rung() -> None:
    require_worth(*compare(0, replicas=3, until_ms=150_000.0))


@pytest.mark.prove
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_eight_steered_replicas_are_worth_the_best_fixed_rung(seed: int) -> None:
    require_worth(*compare(seed, replicas=8, until_ms=200_000.0))
