"""What a rank is told of a plan, `EnginePlan`, and the numeric keys by which SGLang delivers it to every rank at once.

Pure. A message is the whole plan: what it doesn't name is not bounded, whatever the plan before it said.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

from sparktier.configs.contracts.plan import Plan, ReplicaPlan
from sparktier.configs.errors import ContractError
from sparktier.configs.settings.tiers import HIGHEST_TIER_ID, TierSettings

PREFIX = "sparktier_"
EPOCH_KEY, VERSION_KEY, TTL_KEY = "sparktier_epoch", "sparktier_plan_version", "sparktier_ttl_ms"
RUNG_KEY, ROWS_KEY, DEFAULT_TIER_KEY = "sparktier_rung", "sparktier_rows", "sparktier_default_tier"
SEATS_KEY = "sparktier_seats"
LATCH_KEY = "sparktier_latch"
"""No part of a plan, and sent by itself: 1 holds rung 0 whatever plans say, 0 lets plans decide again."""
_REQUIRED = (EPOCH_KEY, VERSION_KEY, RUNG_KEY, DEFAULT_TIER_KEY)
# The least that each may be; those of tiers below.
_LEAST = {EPOCH_KEY: 1, VERSION_KEY: 1, TTL_KEY: 1, RUNG_KEY: 0, ROWS_KEY: 0, DEFAULT_TIER_KEY: 0, SEATS_KEY: 1}
_TIER_KEY = re.compile(r"sparktier_tier(\d+)_(promise|weight|cap)")
TIER_PARAM = "sparktier_tier"
"""The key of a request's `custom_params` that names its tier."""
REQUEST_PARAM = "sparktier_request"
"""The key of a request's `custom_params` that has the gateway's id of it."""
TRACE_PARAM = "sparktier_trace"
"""The key of a request's `custom_params` that has the span it belongs to, as in the header `traceparent`."""
YIELDING_PRIORITY, PROMISED_PRIORITY = 0, 1
"""Priorities of requests in the engine, where a tier yields: of those of such a tier, and of all others."""
MAX_TIERS = HIGHEST_TIER_ID + 1


class Rung(IntEnum):
    """The ladder: how much of a draft is verified. A higher one verifies more rows."""

    OFF = 0
    CHAIN_SHORT = 1
    CHAIN = 2
    TREE = 3


@dataclass(frozen=True)
class TierTerms:
    """What a rank holds of one tier: promise (None: best effort), weight, and most drafted tokens of a request."""

    promise_tok_s: float | None = None
    weight: float = 1.0
    cap_tokens: int | None = None


def terms_of(tier: TierSettings) -> TierTerms:
    """Return what the ranks hold of a tier of the settings."""
    return TierTerms(tier.promise_tok_s, tier.weight, tier.cap_tokens)


@dataclass(frozen=True)
class EnginePlan:
    """A plan as a rank applies it. `rows` bounds the rows of one step over all requests (0: no bound).

    (`epoch`, `version`) is (0, 0) for what a rank starts with. `ttl_ms` None holds until the next plan. `seats` are the
    most requests that run at once where a tier yields: a promised request takes the seat of one that yields.
    """

    epoch: int = 0
    version: int = 0
    ttl_ms: int | None = None
    rung: Rung = Rung.CHAIN
    rows: int = 0
    seats: int | None = None
    default_tier: int = 0
    tiers: Mapping[int, TierTerms] = field(default_factory=lambda: {0: TierTerms()})

    def read_back(self) -> dict[str, Any]:
        """Return everything in force as plain values, for messages."""
        tiers = {str(tier): asdict(terms) for tier, terms in sorted(self.tiers.items())}
        head = {"epoch": self.epoch, "plan_version": self.version, "ttl_ms": self.ttl_ms}
        return {
            **head,
            "rung": int(self.rung),
            "rows": self.rows,
            "seats": self.seats,
            "default_tier": self.default_tier,
            "tiers": tiers,
        }


def engine_plan(plan: Plan, replica_id: str) -> EnginePlan:
    """Return what `plan` says to the ranks of `replica_id`.

    Raises:
        ContractError: it doesn't list that replica, or puts it on a rung that no ladder has.
    """
    replica = next((each for each in plan.replicas if each.replica_id == replica_id), None)
    if replica is None:
        listed = [each.replica_id for each in plan.replicas]
        raise ContractError(f"Plan: replicas must list {replica_id} (found {listed}). Ask the replica that is meant.")
    if replica.rung > max(Rung):
        raise ContractError(f"Plan: rung must be at most {int(max(Rung))} (found {replica.rung}). Send a lower one.")
    caps = {tier: bounds.cap_tokens for tier, bounds in replica.tiers.items()}
    return EnginePlan(
        epoch=plan.epoch,
        version=plan.version,
        ttl_ms=plan.ttl_ms,
        rung=Rung(replica.rung),
        rows=replica.rows,
        seats=_seats(plan, replica),
        default_tier=plan.default_tier,
        tiers={
            tier: TierTerms(promise.promise_tok_s, promise.weight, caps.get(tier))
            for tier, promise in plan.tiers.items()
        },
    )


def _seats(plan: Plan, replica: ReplicaPlan) -> int | None:
    caps = [replica.tiers[tier].cap_users if tier in replica.tiers else None for tier in plan.tiers]
    users = [cap for cap in caps if cap is not None]
    yields = any(promise.yields for promise in plan.tiers.values())
    return max(1, sum(users)) if yields and len(users) == len(caps) else None


def keys_of(plan: EnginePlan) -> dict[str, float]:
    """Return the keys that say `plan`; `plan_of` reads them."""
    keys: dict[str, float | None] = {
        EPOCH_KEY: plan.epoch,
        VERSION_KEY: plan.version,
        TTL_KEY: plan.ttl_ms,
        RUNG_KEY: int(plan.rung),
        ROWS_KEY: plan.rows,
        SEATS_KEY: plan.seats,
        DEFAULT_TIER_KEY: plan.default_tier,
    }
    for tier, terms in plan.tiers.items():
        name = f"{PREFIX}tier{tier}"
        keys |= {
            f"{name}_promise": terms.promise_tok_s,
            f"{name}_weight": terms.weight,
            f"{name}_cap": terms.cap_tokens,
        }
    return {key: value for key, value in keys.items() if value is not None}


def plan_of(keys: Mapping[str, float]) -> EnginePlan:
    """Return the plan that `keys` (all valid: see `refusals`) say."""
    ttl_ms, seats = keys.get(TTL_KEY), keys.get(SEATS_KEY)
    return EnginePlan(
        epoch=int(keys[EPOCH_KEY]),
        version=int(keys[VERSION_KEY]),
        ttl_ms=None if ttl_ms is None else int(ttl_ms),
        rung=Rung(int(keys[RUNG_KEY])),
        rows=int(keys.get(ROWS_KEY, 0)),
        seats=None if seats is None else int(seats),
        default_tier=int(keys[DEFAULT_TIER_KEY]),
        tiers={tier: _terms(parts) for tier, parts in _by_tier(keys).items()},
    )


def refusals(keys: Mapping[str, Any], *, before: EnginePlan, highest: Rung = Rung.TREE) -> list[str]:
    """Return why `keys` are no plan for an engine that runs `before` and whose ladder ends at `highest`."""
    wrong = [reason for key, value in keys.items() if (reason := refusal(key, value, highest))]
    missing = [key for key in _REQUIRED if key not in keys]
    if missing:
        wrong.append(f"{', '.join(missing)} must be given: a plan replaces the one before it whole")
    return wrong or list(_contradictions(keys, before))


def refusal(key: str, value: object, highest: Rung = Rung.TREE) -> str | None:
    """Return why `value` can't be put under `key` on an engine whose ladder ends at `highest`, or None."""
    match = _TIER_KEY.fullmatch(key)
    if key not in _LEAST and match is None:
        return f"{key} is no key of a plan of schema 2"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"{key} must be a number (found {value!r})"
    if match is not None and int(match.group(1)) > HIGHEST_TIER_ID:
        return f"{key}: a tier id must be at most {HIGHEST_TIER_ID}"
    if match is not None and match.group(2) != "cap":
        return None if value > 0 else f"{key} must be more than 0 (found {value})"
    least = _LEAST.get(key, 0)
    if value < least or value != int(value) or value > 2**53:
        return f"{key} must be a whole number of at least {least} (found {value})"
    if key == RUNG_KEY and value > highest:
        return f"{key} must be at most {int(highest)}, the highest rung of this engine (found {value})"
    return None


def _contradictions(keys: Mapping[str, float], before: EnginePlan) -> Iterator[str]:
    new, old = (int(keys[EPOCH_KEY]), int(keys[VERSION_KEY])), (before.epoch, before.version)
    if new <= old:
        yield f"{EPOCH_KEY} and {VERSION_KEY} must rise above those in force, which are {old} (found {new})"
    tiers = _by_tier(keys)
    for tier, parts in tiers.items():
        if "weight" not in parts:
            yield f"tier {tier} must be listed with its weight, as it is given a {' and a '.join(sorted(parts))}"
    if keys[DEFAULT_TIER_KEY] not in tiers:
        yield f"{DEFAULT_TIER_KEY} must be a tier that the plan lists: {sorted(tiers)} (found {keys[DEFAULT_TIER_KEY]})"


def _by_tier(keys: Mapping[str, float]) -> dict[int, dict[str, float]]:
    tiers: dict[int, dict[str, float]] = {}
    for key, value in keys.items():
        if match := _TIER_KEY.fullmatch(key):
            tiers.setdefault(int(match.group(1)), {})[match.group(2)] = value
    return tiers


def _terms(parts: Mapping[str, float]) -> TierTerms:
    promise, cap = parts.get("promise"), parts.get("cap")
    return TierTerms(
        None if promise is None else float(promise), float(parts["weight"]), None if cap is None else int(cap)
    )
