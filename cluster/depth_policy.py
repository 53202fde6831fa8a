"""The depth policy: what each replica drafts, how many rows a step may verify, and how many users of a tier it takes.

Pure: the same inputs give the same bytes. Each replica's part is decided from its `ReplicaInputs` alone, which go into
the log, so that a decision can be made again from there. Formulas and parameters are in docs/policies/depth.md.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sparktier.cluster.policy.judgement import Judge
from sparktier.cluster.policy.policy_types import PolicyConfig, PolicyState, Received, ReplicaInputs
from sparktier.cluster.policy.replica_policy import Decided, decide_replica, depth_of, most_users_of
from sparktier.cluster.policy.signal_trust import doubt
from sparktier.cluster.policy.tier_shares import wanted_users
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.contracts.decision import Decision, Depth
from sparktier.configs.contracts.plan import Plan, ReplicaPlan, TierPromise

EVALUATIONS_PER_TICK = 1000
"""Questions to the planner at most in one `decide`, whatever the number of replicas."""


class Outcome(NamedTuple):
    """A tick: the plan for all, the decisions that changed something, what to remember, questions to the planner.

    `doubts` says of replicas whose signals are not believed why not.
    """

    plan: Plan
    decisions: tuple[Decision, ...]
    state: PolicyState
    evaluations: int
    doubts: Mapping[str, str]


def decide(
    received: Mapping[str, Received],
    config: PolicyConfig,
    models: Mapping[str, StepTimeModel],
    state: PolicyState,
    *,
    now_ms: int,
    at_ms: int,
) -> Outcome:
    """Return the plan for all replicas.

    Args:
        received: by replica, its latest signals and their age.
        config: the operator's choices.
        models: by replica, its step times; a replica without any keeps its rung and gets the operator's caps alone.
        state: of the tick before.
        now_ms: the controller's monotonic clock.
        at_ms: its time of day, for messages.
    """
    bare = {
        name: ReplicaInputs(
            replica_id=name, now_ms=now_ms, at_ms=at_ms, received=each, memory=state.replicas.get(name), wanted=None
        )
        for name, each in sorted(received.items())
    }
    # 1. Whose signals are believed, and what each replica is to have room for.
    doubts = {name: reason for name, given in bare.items() if (reason := doubt(given, config)) is not None}
    believed = {name: given.received.signals for name, given in bare.items() if name not in doubts}
    serving = {name: each for name, each in believed.items() if each and received[name].asked == "serving"}
    wanted = wanted_users(serving, config, state, now_ms=now_ms)
    # 2. Each replica by itself, those that have waited longest first, as long as the planner may be asked.
    judge = Judge(config, left=EVALUATIONS_PER_TICK)
    decided: dict[str, tuple[ReplicaInputs, Decided]] = {}
    for name in sorted(bare, key=lambda each: (_considered_ms(bare[each]), each)):
        given = bare[name]
        if name in serving and judge.can_afford(most_users_of(serving[name], config)):
            given = given.model_copy(update={"wanted": wanted.by_replica[name]})
        if (one := decide_replica(given, config, models.get(name), judge)) is not None:
            decided[name] = (given, one)
    # 3. One plan, and a decision for each replica that has to change.
    names = sorted(decided)
    memories = {name: decided[name][1].memory for name in names}
    new = PolicyState(
        epoch=state.epoch,
        version=state.version + 1,
        replicas=memories,
        packed=wanted.packed,
        packed_ms=wanted.packed_ms,
    )
    plan = _plan([decided[name][1].plan for name in names], config, new, at_ms=at_ms)
    decisions = tuple(found for name in names if (found := _decision(*decided[name])) is not None)
    return Outcome(plan, decisions, new, judge.asked, doubts)


def _plan(replicas: Sequence[ReplicaPlan], config: PolicyConfig, state: PolicyState, *, at_ms: int) -> Plan:
    return Plan(
        epoch=state.epoch,
        version=state.version,
        issued_at_ms=at_ms,
        ttl_ms=config.ttl_ms,
        default_tier=config.default_tier,
        tiers={
            tier: TierPromise(name=rule.name, promise_tok_s=rule.promise_tok_s, weight=rule.weight, yields=rule.yields)
            for tier, rule in config.tiers.items()
        },
        replicas=tuple(replicas),
    )


def _decision(given: ReplicaInputs, decided: Decided) -> Decision | None:
    """What is new since the tick before, or since the replica was first heard; None if nothing is."""
    after = depth_of(decided.plan)
    before = None if given.memory is None else given.memory.planned
    if before == after:
        return None
    return Decision(
        at_ms=given.at_ms,
        replica_id=given.replica_id,
        before=before or _found(given),
        after=after,
        reason=decided.reason,
        inputs=given.model_dump(mode="json"),
    )


def _found(given: ReplicaInputs) -> Depth:
    """The depth of a replica that was not steered before."""
    signals = given.received.signals
    return Depth(rung=0, rows=0) if signals is None else Depth(rung=signals.rung, rows=signals.rows)


def _considered_ms(given: ReplicaInputs) -> int:
    return -1 if given.memory is None else given.memory.considered_ms
