"""Merges the states of all ranks of a replica into the `Signals` of the contract."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

import numpy as np

from sparktier.configs.contracts.message import Spread
from sparktier.configs.contracts.signals import CanaryReport, RankLoad, Signals, TierInForce
from sparktier.configs.errors import ReplicaError
from sparktier.configs.plan_keys import EnginePlan
from sparktier.serving.engine.telemetry.rank_state import RankState
from sparktier.serving.engine.telemetry.spec_stats import TierStats, acceptance, predicted_tokens

_CANARY_COUNTS = ("scored_tokens", "alarms", "far_tokens", "score_steps", "steps")
Number = TypeVar("Number", int, float)


def signals_of(states: Sequence[RankState], *, replica_id: str, seq: int, at_ms: int) -> Signals:
    """Return the signals of a replica whose ranks are in `states`.

    Steps of different attention groups keep pace with each other, so their slowest time is everybody's.

    Raises:
        ReplicaError: the ranks don't run the same plan, so that no statement about the depth in force would be true.
    """
    plan, expired = _applied(states)
    ages_ms = [state.plan_age_ms for state in states if state.plan_age_ms is not None]
    latch_cause = next((state.latched for state in states if state.latched is not None), None)
    groups = leaders(states)
    prefills_ms = [state.prefill_ms_per_token for state in groups if state.prefill_ms_per_token is not None]
    return Signals(
        replica_id=replica_id,
        epoch=plan.epoch,
        seq=seq,
        at_ms=at_ms,
        plan_version=plan.version,
        plan_age_ms=max(ages_ms, default=None),
        expired=expired,
        rung=int(plan.rung),
        rows=plan.rows,
        default_tier=plan.default_tier,
        latched=latch_cause is not None,
        latch_cause=latch_cause,
        shares={tier: TierInForce(**asdict(terms)) for tier, terms in plan.tiers.items()},
        max_running=sum(state.max_running for state in groups),
        kv_tokens=sum(state.kv_tokens for state in groups),
        prefill_ms_per_token=max(prefills_ms, default=None),
        drift_frac=max((state.drift_frac for state in groups if state.drift_frac is not None), default=None),
        queue_age_ms=_greatest([state.queue_age_ms for state in groups]),
        arrivals_s=_sums([state.arrivals_s for state in groups]),
        accepted_tokens=_spreads([state.accepted_tokens for state in groups]),
        predicted_tokens=_predicted(groups),
        met=_met(groups),
        ranks=tuple(_load(state) for state in groups),
        step_ms=_greatest([state.step_ms for state in groups]),
        prefill_frac=max(state.prefill_frac for state in groups),
        accept_by_position={tier: tuple(acceptance(stats)) for tier, stats in by_tier(groups).items()},
        tok_s_per_user=_spreads([state.speeds for state in groups]),
        canary=_canary(groups),
    )


def leaders(states: Iterable[RankState]) -> list[RankState]:
    """Return the one state of each attention group that speaks for it, in order."""
    return sorted((state for state in states if state.is_group_leader), key=lambda state: state.dp_rank)


def by_tier(groups: Iterable[RankState]) -> dict[int, list[TierStats]]:
    """Return what speculation yielded for each tier, an entry for each of the `groups` that served it."""
    found: dict[int, list[TierStats]] = {}
    for state in groups:
        for tier, stats in state.spec_stats.by_tier.items():
            found.setdefault(tier, []).append(stats)
    return found


def _predicted(groups: Iterable[RankState]) -> dict[int, float]:
    means = {tier: predicted_tokens(stats) for tier, stats in by_tier(groups).items()}
    return {tier: mean for tier, mean in means.items() if mean is not None}


def _applied(states: Sequence[RankState]) -> tuple[EnginePlan, bool]:
    """Return the plan that every rank applies, and whether its time is over. Raises ReplicaError if they differ."""
    first = states[0]
    for state in states[1:]:
        if (state.plan, state.expired) != (first.plan, first.expired):
            ranks = {each.tp_rank: {**each.plan.read_back(), "expired": each.expired} for each in states}
            raise ReplicaError(f"All ranks must run one plan (found by rank: {ranks}). Send one with a higher version.")
    return first.plan, first.expired


def _load(state: RankState) -> RankLoad:
    return RankLoad(
        dp_rank=state.dp_rank,
        running=state.running,
        queued=state.queued,
        kv_used_frac=state.kv_used_frac,
        context_tokens_p50=state.context_tokens_p50,
    )


def _canary(groups: Sequence[RankState]) -> CanaryReport:
    """Return what the canaries of all groups found: their counts together, and the worst state."""
    reports = [state.canary for state in groups]
    return CanaryReport(
        state=max((each.state for each in reports), key=("off", "watching", "alarmed").index),
        acceptance=max((each.acceptance for each in reports), key=("usual", "low", "high").index),
        level_frac=max(each.level_frac for each in reports),
        **{name: sum(getattr(each, name) for each in reports) for name in _CANARY_COUNTS},
    )


def _greatest(groups: Iterable[Mapping[int, Number]]) -> dict[int, Number]:
    found: dict[int, Number] = {}
    for values in groups:
        for key, value in values.items():
            found[key] = max(value, found.get(key, value))
    return found


def _sums(groups: Iterable[Mapping[int, float]]) -> dict[int, float]:
    found: dict[int, float] = {}
    for values in groups:
        for tier, value in values.items():
            found[tier] = found.get(tier, 0.0) + value
    return found


def _met(groups: Iterable[RankState]) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for state in groups:
        for tier, (met, judged) in state.met.items():
            before = found.get(tier, (0, 0))
            found[tier] = (before[0] + met, before[1] + judged)
    return found


def _spreads(groups: Iterable[Mapping[int, list[float]]]) -> dict[int, Spread]:
    """Return the percentiles over the users of all groups, by tier."""
    users: dict[int, list[float]] = {}
    for by_tier_of_group in groups:
        for tier, values in by_tier_of_group.items():
            users.setdefault(tier, []).extend(values)
    quantiles = {tier: np.percentile(values, [5, 50]) for tier, values in users.items()}
    return {tier: Spread(p5=float(p5), p50=float(p50)) for tier, (p5, p50) in quantiles.items()}
