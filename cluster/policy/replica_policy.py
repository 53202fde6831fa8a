"""One replica's part of the depth policy: its rung, rows, caps and state, from its own inputs alone. Pure.

Formulas and parameters are in docs/policies/depth.md.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from sparktier.cluster.policy.acceptance import HARD_TOKENS_FRAC, forgiven, rounded
from sparktier.cluster.policy.judgement import BoxQuestion, Judge, Pairs, RungQuestion, Texts
from sparktier.cluster.policy.policy_types import OFF, TREE, PolicyConfig, ReplicaInputs, ReplicaMemory
from sparktier.cluster.policy.signal_trust import doubt
from sparktier.cluster.policy.tier_shares import running_of, users_of
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.contracts.decision import Depth
from sparktier.configs.contracts.message import RunState
from sparktier.configs.contracts.plan import ReplicaPlan, TierCaps
from sparktier.configs.contracts.signals import Signals

_LEAST_DRIFT, _MOST_DRIFT = 0.25, 4.0
# Replicas whose drift differs by less share an answer.
_DRIFT_GRAIN = math.log(1.05)
_CONTEXT_GRAIN = 64


class Decided(NamedTuple):
    """What a replica is to do, why, and what is remembered of it."""

    plan: ReplicaPlan
    memory: ReplicaMemory
    reason: str


def decide_replica(
    given: ReplicaInputs, config: PolicyConfig, times: StepTimeModel | None, judge: Judge
) -> Decided | None:
    """Return what one replica is to do; None while nothing that can be believed has been heard of it."""
    reason, memory, signals = doubt(given, config), given.memory, given.received.signals
    if reason is not None or signals is None:
        if memory is None:
            return None
        return _decided(given, config, _stopped(memory), f"signals are not believed: {reason}")
    is_new = memory is None or signals.seq != memory.seq
    memory = _noted(memory or _first(signals, config, given.now_ms), signals, given.now_ms)
    latch, held = _latched(signals), given.received.held_rung
    if latch is None and held is not None:
        memory = _moved(_stopped(memory), min(held, config.highest_rung), given.now_ms)
    if latch is not None:
        memory, reason = _moved(memory, OFF, given.now_ms), latch
    elif given.wanted is None or not is_new:
        reason = "as before"
    elif times is not None:
        memory, reason = _by_model(given, memory, signals, config, times, judge)
    else:
        memory, reason = _without_model(given, memory, config)
    memory, probe = _probed(memory, signals, config, given.now_ms, may=latch is None and held is None and is_new)
    ordered = f"{given.received.order}; " if given.received.order else ""
    return _decided(given, config, memory, ordered + (probe or reason))


def _decided(given: ReplicaInputs, config: PolicyConfig, memory: ReplicaMemory, reason: str) -> Decided:
    plan = _replica_plan(given, config, memory)
    return Decided(plan, memory.model_copy(update={"planned": depth_of(plan)}), reason)


def _stopped(memory: ReplicaMemory) -> ReplicaMemory:
    return memory.model_copy(update={"probing": False})


def _by_model(
    given: ReplicaInputs,
    memory: ReplicaMemory,
    signals: Signals,
    config: PolicyConfig,
    times: StepTimeModel,
    judge: Judge,
) -> tuple[ReplicaMemory, str]:
    present = users_of(signals)
    chain, tree = (rounded(forgiven(of, present)) for of in (memory.chain_accept, memory.tree_accept))
    slow = _slow_fracs(signals, config)
    judged_by = {tier: 1 - config.caution_frac * (1 - frac) for tier, frac in slow.items()}
    texts = Texts(chain, tree, _twentieths(judged_by), _twentieths(slow))
    running = _known(running_of(signals), config)
    context_tokens = _context_tokens(signals)
    reasons = []
    # 1. The rung, for those who run.
    if running and given.received.held_rung is None:
        total = sum(count for _, count in running)
        values = judge.rung(RungQuestion(running, total * context_tokens, texts), times.table).values
        memory, reason = _best_rung(memory, values, texts, config, given.now_ms)
        reasons.append(reason)
    # 2. How many fit on it.
    question = BoxQuestion(
        rung=memory.rung,
        wanted=_eighths(given.wanted or {}),
        texts=texts,
        drift_frac=_rounded_drift(signals.drift_frac or 1.0),
        context_tokens=context_tokens,
        prefill_frac=math.ceil(20 * min(1.0, signals.prefill_frac)) / 20,
        most_users=most_users_of(signals, config),
        kv_tokens=signals.kv_tokens,
    )
    box = judge.box(question, times.table)
    memory, reason = _capped(memory, box.caps, box.rows, config, given.now_ms)
    return memory, "; ".join(part for part in (*reasons, reason) if part) or "as before"


def _best_rung(
    memory: ReplicaMemory, values: Mapping[int, float], texts: Texts, config: PolicyConfig, now_ms: int
) -> tuple[ReplicaMemory, str]:
    if not texts.chain and not texts.tree:
        return memory, "nothing was drafted yet: the rung stays"
    best = max(values, key=lambda rung: (values[rung], -rung))
    now = values.get(memory.rung, 0.0)
    if best == memory.rung or values[best] <= (1.0 + config.margin_frac) * now:
        return memory, ""
    gain = f"rung {best} is worth {values[best]:.4g} tok/s, rung {memory.rung} {now:.4g}"
    if now_ms - memory.moved_ms < config.hold_ms:
        return memory, f"{gain}, and moved {now_ms - memory.moved_ms} ms ago"
    return _moved(memory, best, now_ms), gain


def _without_model(given: ReplicaInputs, memory: ReplicaMemory, config: PolicyConfig) -> tuple[ReplicaMemory, str]:
    memory = memory.model_copy(update={"caps": None, "rows": 0, "considered_ms": given.now_ms})
    why = "without step times the rung is the highest, caps are the operator's"
    is_held = given.received.held_rung is not None
    if not is_held and memory.rung != config.highest_rung and given.now_ms - memory.moved_ms >= config.hold_ms:
        memory = _moved(memory, config.highest_rung, given.now_ms)
    return memory, why


def _capped(
    memory: ReplicaMemory, caps: Mapping[int, int], rows: int, config: PolicyConfig, now_ms: int
) -> tuple[ReplicaMemory, str]:
    """Lower caps at once, and raise them when the last rise is `hold_ms` ago."""
    old = memory.caps
    new, raised_ms, reason = dict(caps), memory.raised_ms, ""
    if old is not None:
        lower = {tier: min(cap, old.get(tier, 0)) for tier, cap in caps.items()}
        if lower != new and now_ms - memory.raised_ms < config.hold_ms:
            new = lower
    if old is None or any(cap > old.get(tier, 0) for tier, cap in new.items()):
        raised_ms = now_ms
    if new != old:
        reason = f"room for {dict(sorted(caps.items()))} by the model"
    changes = {"caps": new, "rows": rows, "raised_ms": raised_ms, "considered_ms": now_ms}
    return memory.model_copy(update=changes), reason


def _probed(
    memory: ReplicaMemory, signals: Signals, config: PolicyConfig, now_ms: int, *, may: bool
) -> tuple[ReplicaMemory, str | None]:
    """Out of rung 0 draft for one tick now and then: without drafts nothing shows that they would pay again."""
    if memory.probing:
        return memory.model_copy(update={"probing": False}), None if memory.rung else "the probe is over"
    due = now_ms - memory.probed_ms >= config.probe_every_ms
    if may and due and memory.rung == OFF and config.highest_rung > OFF and any(running_of(signals).values()):
        return memory.model_copy(update={"probing": True, "probed_ms": now_ms}), "a probe: what would drafts yield?"
    return memory, None


def _replica_plan(given: ReplicaInputs, config: PolicyConfig, memory: ReplicaMemory) -> ReplicaPlan:
    signals = given.received.signals
    most_users = config.most_users if signals is None else most_users_of(signals, config)
    tiers = {}
    for tier, rule in config.tiers.items():
        bounds = [rule.target(most_users).most_users, None if memory.caps is None else memory.caps.get(tier, 0)]
        cap_users = min((bound for bound in bounds if bound is not None), default=None)
        tiers[tier] = TierCaps(cap_users=cap_users, cap_tokens=rule.cap_tokens)
    return ReplicaPlan(
        replica_id=given.replica_id,
        url=given.received.url,
        state=_state(given),
        rung=min(r for r in sorted(config.drafted) if r > OFF) if memory.probing else memory.rung,
        rows=memory.rows,
        tiers=tiers,
    )


def _state(given: ReplicaInputs) -> RunState:
    asked, signals = given.received.asked, given.received.signals
    if asked == "draining" and signals is not None and not any(users_of(signals).values()):
        return "off"
    return asked


def depth_of(plan: ReplicaPlan) -> Depth:
    """Return what a plan says of a replica's depth and caps."""
    caps = {tier: bounds.cap_users for tier, bounds in plan.tiers.items()}
    return Depth(rung=plan.rung, rows=plan.rows, state=plan.state, caps=caps)


def most_users_of(signals: Signals, config: PolicyConfig) -> int:
    """Return how many requests a replica runs at once."""
    return signals.max_running or config.most_users


def _first(signals: Signals, config: PolicyConfig, now_ms: int) -> ReplicaMemory:
    """The memory of a replica that is heard for the first time: it goes on as it is."""
    return ReplicaMemory(
        rung=min(signals.rung, config.highest_rung),
        rows=signals.rows,
        moved_ms=now_ms,
        raised_ms=now_ms,
        considered_ms=now_ms - 1,
        seq=signals.seq,
        seq_ms=now_ms,
        probed_ms=now_ms,
        chain_accept={},
        tree_accept={},
    )


def _noted(memory: ReplicaMemory, signals: Signals, now_ms: int) -> ReplicaMemory:
    """The memory with what the signals tell: that they move on, and what was accepted on the rung that runs."""
    changes: dict[str, object] = {}
    if signals.seq != memory.seq:
        changes = {"seq": signals.seq, "seq_ms": now_ms}
    accept = {tier: tuple(chances) for tier, chances in signals.accept_by_position.items() if chances}
    if accept and signals.rung != OFF:
        changes["tree_accept" if signals.rung >= TREE else "chain_accept"] = accept
    return memory.model_copy(update=changes)


def _latched(signals: Signals) -> str | None:
    if signals.latched:
        return "the replica has latched rung 0"
    return "the canary found tokens that differ" if signals.canary.state == "alarmed" else None


def _moved(memory: ReplicaMemory, rung: int, now_ms: int) -> ReplicaMemory:
    if rung == memory.rung:
        return memory
    return memory.model_copy(update={"rung": rung, "moved_ms": now_ms, "probed_ms": now_ms, "probing": False})


def _rounded_drift(drift_frac: float) -> float:
    bounded = min(max(drift_frac, _LEAST_DRIFT), _MOST_DRIFT)
    return math.exp(_DRIFT_GRAIN * math.ceil(math.log(bounded) / _DRIFT_GRAIN - 1e-9))


def _slow_fracs(signals: Signals, config: PolicyConfig) -> dict[int, float]:
    """By tier, tokens a step of the 5th percentile user over the median's."""
    spreads = signals.accepted_tokens
    known = {tier: spreads[tier].p5 / spreads[tier].p50 for tier in spreads if spreads[tier].p50 > 0}
    return {tier: known.get(tier, HARD_TOKENS_FRAC) for tier in config.tiers}


def _twentieths(fracs: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    return tuple((tier, round(20 * frac) / 20) for tier, frac in sorted(fracs.items()))


def _context_tokens(signals: Signals) -> int:
    """Median context of a user, up to the next multiple of 64."""
    longest = max(rank.context_tokens_p50 for rank in signals.ranks)
    return _CONTEXT_GRAIN * -(-longest // _CONTEXT_GRAIN)


def _known(users: Mapping[int, int], config: PolicyConfig) -> Pairs:
    """Users by tier, those of tiers that are not known as the default tier's, as ranks serve them."""
    found: dict[int, int] = {}
    for tier, count in users.items():
        served = tier if tier in config.tiers else config.default_tier
        found[served] = found.get(served, 0) + count
    return tuple(sorted((tier, count) for tier, count in found.items() if count))


def _eighths(wanted: Mapping[int, int]) -> Pairs:
    """Users in eighths of all, at least one where any are wanted: so much of a difference makes no other box."""
    total = sum(wanted.values())
    return tuple((tier, max(1, round(8 * count / total)) if count else 0) for tier, count in sorted(wanted.items()))
