"""Random messages of the contracts, as what a model validates."""

from typing import Any

from hypothesis import strategies as st

REPLICAS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,8}[a-z0-9])?", fullmatch=True)
COUNTS = st.integers(0, 1 << 40)
POSITIVES = st.integers(1, 1 << 40)
TIERS = st.integers(0, 63)
RUNGS = st.integers(0, 15)
FRACTIONS = st.floats(0, 1)
RATES = st.floats(0, 1e9)
WEIGHTS = st.floats(0, 1e9, exclude_min=True)
SPREADS = st.tuples(RATES, RATES).map(lambda pair: {"p5": min(pair), "p50": max(pair)})


def by_tier(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[int, Any]]:
    return st.dictionaries(TIERS, values, max_size=4)


RANKS = st.fixed_dictionaries(
    {
        "dp_rank": COUNTS,
        "running": by_tier(COUNTS),
        "queued": by_tier(COUNTS),
        "kv_used_frac": FRACTIONS,
        "context_tokens_p50": COUNTS,
    }
)
IN_FORCE = st.fixed_dictionaries(
    {"promise_tok_s": st.none() | WEIGHTS, "weight": WEIGHTS, "cap_tokens": st.none() | COUNTS}
)
SIGNALS = st.fixed_dictionaries(
    {
        "replica_id": REPLICAS,
        "epoch": COUNTS,
        "seq": COUNTS,
        "at_ms": COUNTS,
        "plan_version": COUNTS,
        "rung": RUNGS,
        "rows": COUNTS,
        "shares": by_tier(IN_FORCE),
        "ranks": st.lists(RANKS, min_size=1, max_size=3, unique_by=lambda rank: rank["dp_rank"]),
        "step_ms": st.dictionaries(RUNGS, RATES, max_size=4),
        "prefill_frac": FRACTIONS,
        "accept_by_position": by_tier(st.lists(FRACTIONS, max_size=5)),
        "tok_s_per_user": by_tier(SPREADS),
        "canary": st.tuples(COUNTS, COUNTS).map(
            lambda pair: {"state": "watching", "scored_tokens": max(pair), "alarms": min(pair)}
        ),
    },
    optional={
        "plan_age_ms": st.none() | COUNTS,
        "expired": st.booleans(),
        "state": st.none() | st.sampled_from(["serving", "draining", "off"]),
        "caps": st.none() | by_tier(COUNTS),
        "latched": st.none() | st.booleans(),
        "latch_cause": st.none() | st.text(max_size=20),
        "drift_frac": st.none() | WEIGHTS,
        "max_running": st.none() | POSITIVES,
        "kv_tokens": st.none() | POSITIVES,
        "prefill_ms_per_token": st.none() | RATES,
        "queue_age_ms": by_tier(COUNTS),
        "arrivals_s": by_tier(RATES),
        "accepted_tokens": by_tier(SPREADS),
        "predicted_tokens": by_tier(RATES),
        "met": by_tier(st.tuples(COUNTS, COUNTS).map(sorted)),
    },
)
CAPS = st.fixed_dictionaries({}, optional={"cap_users": st.none() | COUNTS, "cap_tokens": st.none() | COUNTS})
ROOMS = st.fixed_dictionaries(
    {"seq": COUNTS, "plan_version": COUNTS, "room": by_tier(COUNTS)}, optional={"caps": by_tier(COUNTS)}
)


@st.composite
def _plans(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.dictionaries(TIERS, st.text(max_size=8), min_size=1, max_size=4))
    terms = st.fixed_dictionaries(
        {}, optional={"promise_tok_s": st.none() | WEIGHTS, "weight": WEIGHTS, "yields": st.booleans()}
    )
    tiers = {tier: {"name": f"{tier}{name}", **draw(terms)} for tier, name in names.items()}
    replica = st.fixed_dictionaries(
        {
            "replica_id": REPLICAS,
            "url": st.just("http://10.0.0.1:30000"),
            "state": st.sampled_from(["serving", "draining", "off"]),
            "rung": RUNGS,
            "rows": COUNTS,
            "tiers": st.dictionaries(st.sampled_from(sorted(tiers)), CAPS, max_size=3),
        }
    )
    head = {"epoch": POSITIVES, "version": POSITIVES, "issued_at_ms": COUNTS, "ttl_ms": st.none() | POSITIVES}
    return {
        **{name: draw(values) for name, values in head.items()},
        "default_tier": draw(st.sampled_from(sorted(tiers))),
        "tiers": tiers,
        "replicas": draw(st.lists(replica, max_size=3, unique_by=lambda item: item["replica_id"])),
    }


PLANS = _plans()
JSON = st.recursive(
    st.none() | st.booleans() | COUNTS | FRACTIONS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DEPTHS = st.fixed_dictionaries(
    {"rung": RUNGS, "rows": COUNTS},
    optional={
        "state": st.sampled_from(["serving", "draining", "off"]),
        "caps": st.dictionaries(TIERS, st.none() | COUNTS, max_size=2),
    },
)
DECISIONS = st.fixed_dictionaries(
    {
        "at_ms": COUNTS,
        "replica_id": REPLICAS,
        "from": DEPTHS,
        "to": DEPTHS,
        "reason": st.text(min_size=1, max_size=9),
        "inputs": st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    }
)


@st.composite
def _ended(draw: st.DrawFn) -> dict[str, Any]:
    first, count, later = draw(st.integers(1, 99)), draw(st.integers(0, 3)), draw(st.integers(0, 9))
    counts = {"prompt_tokens": COUNTS, "completion_tokens": COUNTS, "cached_tokens": COUNTS}
    times = {"arrived_at_ms": COUNTS, "ended_at_ms": COUNTS, "finish_reason": st.sampled_from(["stop", "abort"])}
    known = {"request_id": st.none() | st.just("r-1"), "prompt": COUNTS, "tier": st.none() | TIERS}
    stages = dict.fromkeys(("queue_ms", "prefill_ms", "decode_ms"), st.none() | RATES)
    fields = st.fixed_dictionaries({**counts, **times}, optional={**known, **stages})
    return {
        "replica_id": draw(REPLICAS),
        "epoch": draw(COUNTS),
        "kept_from": draw(st.integers(1, first)),
        "kept_since_ms": draw(st.none() | COUNTS),
        "in_flight": draw(st.lists(st.sampled_from(["r-1", "r-2"]), unique=True)),
        "last": first + count - 1 + later,
        "ended": [{"seq": first + place, **draw(fields)} for place in range(count)],
    }


ENDED = _ended()
