"""States of ranks as a test needs them, every field with a value of its own."""

from typing import Any

from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms
from sparktier.serving.engine.telemetry.rank_state import RankState
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats

PLAN = EnginePlan(
    epoch=3, version=7, rung=Rung.CHAIN, rows=12, default_tier=5, tiers={5: TierTerms(80.0, weight=2.5, cap_tokens=4)}
)


def stats_of(*rounds: tuple[int, int, int]) -> SpeculationStats:
    """Return the statistics after steps of one request each, given as (tier, depth, accepted)."""
    stats = SpeculationStats(block_tokens=4)
    for tier, depth, accepted in rounds:
        parts = {"draft": 2.0, "verify": 5.0, "inject": 1.0}
        one = {"tiers": [tier], "rows": [depth + 1], "depths": [depth], "accepted": [accepted]}
        stats.step(rung=2, phase_ms=parts, **one)
    return stats


def rank_state(**changes: Any) -> RankState:
    """Return the state of the only rank of a replica, with `changes`."""
    fields: dict[str, Any] = {
        "tp_rank": 0,
        "dp_rank": 0,
        "is_group_leader": True,
        "plan": PLAN,
        "plan_age_ms": 1500,
        "expired": False,
        "refused": None,
        "running": {0: 3, 5: 1},
        "queued": {5: 2},
        "kv_used_frac": 0.25,
        "context_tokens_p50": 100,
        "step_ms": {0: 4.0, 2: 10.0},
        "prefill_frac": 0.125,
        "decode_steps": 3,
        "decode_ms": 30.0,
        "speeds": {0: [10.0, 20.0, 30.0], 5: [7.0]},
        "unknown_tier_requests": 1,
        "max_running": 8,
        "kv_tokens": 4096,
        "prefill_ms_per_token": 1.5,
        "queue_age_ms": {5: 250},
        "arrivals_s": {0: 0.5, 5: 1.5},
        "accepted_tokens": {0: [2.0, 3.0]},
        "met": {5: (3, 4)},
        "retractions": {5: 2},
        "drift_frac": 1.25,
        "spec_stats": stats_of((0, 2, 1), (0, 2, 2), (5, 1, 0)),
    }
    return RankState(**(fields | changes))
