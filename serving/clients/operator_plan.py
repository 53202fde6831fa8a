"""The plan that `sparktier up` and the benchmarks send to a replica where no controller does."""

from collections.abc import Mapping

from sparktier.configs.contracts.message import RunState
from sparktier.configs.contracts.plan import Plan, ReplicaPlan, TierCaps, TierPromise
from sparktier.configs.contracts.signals import Signals
from sparktier.configs.settings.tiers import TierSettings

OPERATOR_EPOCH = 1
"""A controller's epoch is higher, so that its plans shut these out."""


def operator_plan(
    signals: Signals,
    *,
    url: str,
    now_ms: int,
    rung: int | None = None,
    rows: int | None = None,
    tiers: Mapping[int, TierSettings] | None = None,
    state: RunState | None = None,
) -> Plan:
    """Return a plan for the replica of `signals` at `url` that changes what is given and keeps the rest.

    Versions are the time of day, `now_ms`, so the last of several senders wins without asking the others.
    """
    if tiers is None:
        promises, caps, default = _in_force(signals)
    else:
        promises, caps, default = _of_settings(tiers, signals.max_running or 0)
    replica = ReplicaPlan(
        replica_id=signals.replica_id,
        url=url,
        state=state or signals.state or "serving",
        rung=signals.rung if rung is None else rung,
        rows=signals.rows if rows is None else rows,
        tiers=caps,
    )
    previous = signals.plan_version if signals.epoch == OPERATOR_EPOCH else 0
    return Plan(
        epoch=OPERATOR_EPOCH,
        version=max(now_ms, previous + 1),
        issued_at_ms=now_ms,
        ttl_ms=None,
        default_tier=default,
        tiers=promises,
        replicas=(replica,),
    )


def _in_force(signals: Signals) -> tuple[dict[int, TierPromise], dict[int, TierCaps], int]:
    """Return the tiers that the replica serves; it was never told their names."""
    promises = {
        tier: TierPromise(name=f"tier-{tier}", promise_tok_s=terms.promise_tok_s, weight=terms.weight)
        for tier, terms in signals.shares.items()
    }
    users = signals.caps or {}
    caps = {
        tier: TierCaps(cap_users=users.get(tier), cap_tokens=terms.cap_tokens) for tier, terms in signals.shares.items()
    }
    return promises, caps, min(promises) if signals.default_tier is None else signals.default_tier


def _of_settings(
    tiers: Mapping[int, TierSettings], running: int
) -> tuple[dict[int, TierPromise], dict[int, TierCaps], int]:
    promises = {
        tier_id: TierPromise(name=tier.name, promise_tok_s=tier.promise_tok_s, weight=tier.weight, yields=tier.yields)
        for tier_id, tier in tiers.items()
    }
    caps = {
        tier_id: TierCaps(cap_users=tier.most_users(running), cap_tokens=tier.cap_tokens)
        for tier_id, tier in tiers.items()
    }
    return promises, caps, next(tier_id for tier_id, tier in tiers.items() if tier.default)
