"""Signals of a replica that never ran, for what decides by them."""

from collections.abc import Mapping
from typing import Any

from sparktier.cluster.policy.policy_types import PolicyConfig, Received, TierRule
from sparktier.configs.contracts.signals import Signals

STANDARD, STRICT = 0, 1
URL = "http://10.0.0.1:30000"


def policy_config(**changes: Any) -> PolicyConfig:
    """Return the choices of an operator with a tier of each kind and trees, with `changes`."""
    fields: dict[str, Any] = {
        "tiers": {STANDARD: TierRule(name="standard"), STRICT: TierRule(name="strict", promise_tok_s=6.0, weight=4.0)},
        "default_tier": STANDARD,
        "drafted": {0: 0, 1: 2, 2: 5, 3: 5},
        "tree_nodes": 11,
        "hold_ms": 15_000,
    }
    return PolicyConfig(**(fields | changes))


def signals(
    name: str = "replica-0", *, seq: int, at_ms: int, running: Mapping[int, int] | None = None, **changes: Any
) -> Signals:
    """Return signals of a replica with these users, with `changes`."""
    load = {"dp_rank": 0, "running": running or {}, "queued": {}, "kv_used_frac": 0.1, "context_tokens_p50": 100}
    fields: dict[str, Any] = {
        "replica_id": name,
        "epoch": 2,
        "seq": seq,
        "at_ms": at_ms,
        "plan_version": 1,
        "rung": 2,
        "rows": 0,
        "shares": {},
        "max_running": 16,
        "ranks": [load],
        "step_ms": {},
        "prefill_frac": 0.0,
        "accept_by_position": {STANDARD: [0.8, 0.8, 0.7, 0.7, 0.7], STRICT: [0.8, 0.8, 0.7, 0.7, 0.7]},
        "tok_s_per_user": {},
        "canary": {"state": "off", "scored_tokens": 0, "alarms": 0},
    }
    return Signals.model_validate(fields | changes)


def received(found: Signals | None, *, age_ms: int = 0, **changes: Any) -> Received:
    """Return what came of a replica."""
    return Received(signals=found, age_ms=age_ms, url=URL, **changes)
