"""Merges the states of all ranks of a replica into the `Signals` of the contract."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sparktier.configs.contracts.message import Spread
from sparktier.configs.contracts.signals import CanaryReport, RankLoad, Signals, TierInForce
from sparktier.configs.errors import ReplicaError
from sparktier.serving.engine.telemetry.rank_state import RankState
from sparktier.serving.engine.telemetry.spec_stats import TierStats, acceptance

_NO_CANARY = CanaryReport(state="off", scored_tokens=0, alarms=0)


def signals_of(states: Sequence[RankState], *, replica_id: str, seq: int, at_ms: int) -> Signals:
    """Return the signals of a replica whose ranks are in `states`.

    Steps of different attention groups keep pace with each other, so their slowest time is everybody's.

    Raises:
        ReplicaError: the ranks don't run the same plan, so that no statement about the depth in force would be true.
    """
    plans = {(state.plan_version, state.rung, state.rows, tuple(sorted(_shares(state).items()))) for state in states}
    if len(plans) != 1:
        raise ReplicaError(
            f"All ranks must run one plan (version, rung, rows and shares found: {sorted(plans)}). Send it anew."
        )
    [(version, rung, rows, shares)] = plans
    groups = leaders(states)
    return Signals(
        replica_id=replica_id,
        epoch=0,
        seq=seq,
        at_ms=at_ms,
        plan_version=version,
        rung=rung,
        rows=rows,
        shares={
            tier: TierInForce(promise_tok_s=None, weight=weight or 1.0, cap_tokens=cap)
            for tier, (_, cap, weight) in shares
        },
        ranks=tuple(_load(state) for state in groups),
        step_ms=_slowest([state.step_ms for state in groups]),
        prefill_frac=max(state.prefill_frac for state in groups),
        accept_by_position={tier: tuple(acceptance(stats)) for tier, stats in by_tier(groups).items()},
        tok_s_per_user=_speeds(groups),
        canary=_NO_CANARY,
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


def _shares(state: RankState) -> dict[int, tuple[int, int, float]]:
    return {tier: (share.floor, share.cap, float(share.weight)) for tier, share in state.shares.items()}


def _load(state: RankState) -> RankLoad:
    return RankLoad(
        dp_rank=state.dp_rank,
        running=state.running,
        queued=state.queued,
        kv_used_frac=state.kv_used_frac,
        context_tokens_p50=state.context_tokens_p50,
    )


def _slowest(times: Iterable[Mapping[int, float]]) -> dict[int, float]:
    found: dict[int, float] = {}
    for by_rung in times:
        for rung, step_ms in by_rung.items():
            found[rung] = max(step_ms, found.get(rung, 0.0))
    return found


def _speeds(groups: Iterable[RankState]) -> dict[int, Spread]:
    speeds: dict[int, list[float]] = {}
    for state in groups:
        for tier, values in state.speeds.items():
            speeds.setdefault(tier, []).extend(values)
    quantiles = {tier: np.percentile(values, [5, 50]) for tier, values in speeds.items()}
    return {tier: Spread(p5=float(p5), p50=float(p50)) for tier, (p5, p50) in quantiles.items()}
