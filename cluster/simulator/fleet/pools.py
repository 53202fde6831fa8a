"""Static pools of replicas, one for each tier, sized in hindsight: the rival of steering that knows the whole trace.

Pure. The same feasibility model says how many users of one tier alone a replica serves as promised.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from sparktier.cluster.feasibility import ReplicaFacts, TierText, box_of
from sparktier.cluster.policy.policy_types import CHAIN
from sparktier.cluster.simulator.fleet.fleet_types import FleetSpec, FleetTexts, Offered
from sparktier.cluster.verify_planner import PaceRules
from sparktier.configs.contracts.plan import ReplicaPlan, TierCaps

_URL = "http://10.0.0.1:30000"
_SAMPLES, _SAMPLE_TOKENS = 200, 128
# The user whom full caution goes by, as in the controller's signals.
_HARD_QUANTILE = 0.05


def pooled_plans(
    spec: FleetSpec, offered: Sequence[Offered], texts: FleetTexts, *, span_ms: float
) -> list[ReplicaPlan]:
    """Return a static plan for each replica. Pools are the split that leaves the fewest promised users without room.

    Users of a tier are the mean that its offered requests make at once, each as fast as promised; a tier without a
    promise is as fast as a full replica. Of splits as good, the one with most room left is taken.
    """
    tiers = sorted(spec.config.tiers)
    text = _text_of(texts, spec.replica.nodes, spec.config.caution_frac)
    caps = [_cap(spec, tier, text, offered) for tier in tiers]
    users = [_users(spec, tier, offered, span_ms) for tier in tiers]
    best = max(_splits(spec.replicas, len(tiers)), key=lambda split: _worth(split, spec, tiers, caps, users))
    serves = [tier for tier, count in zip(tiers, best, strict=True) for _ in range(count)]
    return [_plan(place, tier, caps[tiers.index(tier)], tiers) for place, tier in enumerate(serves)]


def _splits(replicas: int, tiers: int) -> list[tuple[int, ...]]:
    """All ways to give each tier one replica or more, or, where there are too few, none."""
    least = 1 if replicas >= tiers else 0
    ways = itertools.product(range(least, replicas + 1), repeat=tiers - 1)
    return [(*way, replicas - sum(way)) for way in ways if replicas - sum(way) >= least]


def _worth(
    split: tuple[int, ...], spec: FleetSpec, tiers: Sequence[int], caps: Sequence[int], users: Sequence[float]
) -> tuple[float, float]:
    promised, room = 0.0, 0.0
    for count, tier, cap, wanted in zip(split, tiers, caps, users, strict=True):
        places = count * cap
        if spec.config.tiers[tier].promise_tok_s:
            promised += min(1.0, places / wanted) * wanted if wanted else 0.0
        room += min(2.0, places / wanted) if wanted else 0.0
    return round(promised, 6), room


def _users(spec: FleetSpec, tier: int, offered: Sequence[Offered], span_ms: float) -> float:
    speed = spec.config.tiers[tier].promise_tok_s or 1000.0 / spec.replica.times.table.base_ms
    return 1000.0 * sum(each.output_tokens for each in offered if each.tier == tier) / speed / span_ms


def _cap(spec: FleetSpec, tier: int, text: TierText, offered: Sequence[Offered]) -> int:
    prompts = [each.prompt_tokens + each.output_tokens // 2 for each in offered if each.tier == tier]
    facts = ReplicaFacts(
        times=spec.replica.times,
        rung=CHAIN,
        texts={tier: text},
        most_users=spec.replica.max_running,
        kv_tokens=spec.replica.kv_tokens,
        context_tokens=int(np.median(prompts)) if prompts else 0,
    )
    targets = {tier: spec.config.tiers[tier].target(spec.replica.max_running)}
    wanted = {tier: spec.replica.max_running}
    return box_of(facts, targets, wanted, rules=PaceRules(), margin_frac=spec.config.margin_frac).caps[tier]


def _text_of(texts: FleetTexts, nodes: int, caution_frac: float) -> TierText:
    """The mean survivals of drawn answers, and those that pools are sized by: as far as the controller's caution goes
    from the mean to the answer at the 5th percentile.
    """
    answers = [texts.answer(np.random.default_rng([17, each]), _SAMPLE_TOKENS) for each in range(_SAMPLES)]
    means = np.array([answer.survival[: -nodes or None].mean(axis=0) for answer in answers])
    order = np.argsort(means.sum(axis=1), kind="stable")
    typical, hard = means.mean(axis=0), means[order[int(_HARD_QUANTILE * len(order))]]
    return TierText(typical, typical + caution_frac * (hard - typical))


def _plan(place: int, tier: int, cap: int, tiers: Sequence[int]) -> ReplicaPlan:
    caps = {each: TierCaps(cap_users=cap if each == tier else 0) for each in tiers}
    return ReplicaPlan(replica_id=f"replica-{place:04d}", url=_URL, state="serving", rung=CHAIN, rows=0, tiers=caps)
