"""The plan in force on one rank: rung, row budget, and each tier's share, as they are sent by numeric keys.

Pure. Every rank applies the same numbers between the same two steps, so all ranks of a group run the same depth. A
message is absolute: what it doesn't name is not bounded, whatever the plan before it said.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from sparktier.configs.settings.tiers import HIGHEST_TIER_ID

VERSION_KEY, RUNG_KEY, ROWS_KEY = "sparktier_plan_version", "sparktier_rung", "sparktier_rows"
TIER_PARAM = "sparktier_tier"
"""The key of a request's `custom_params` that names its tier."""
_TIER_KEY = re.compile(r"sparktier_tier(\d+)_(floor|cap|weight)")
MAX_TIERS = HIGHEST_TIER_ID + 1
NO_CAP = 1 << 16


class Rung(IntEnum):
    """The ladder: how much of a draft is verified. A higher one verifies more rows."""

    OFF = 0
    CHAIN_SHORT = 1
    CHAIN = 2
    TREE = 3


@dataclass(frozen=True)
class TierShare:
    """What one tier gets of a step, in drafted tokens for each request, and its weight in the rest."""

    floor: int = 0
    cap: int = NO_CAP
    weight: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A depth plan. `rows` bounds the rows of one step over all requests (0: no bound)."""

    version: int = 0
    rung: Rung = Rung.CHAIN
    rows: int = 0
    tiers: Mapping[int, TierShare] = field(default_factory=dict)

    def read_back(self) -> dict[str, Any]:
        """Return everything in force as plain values, for messages."""
        shares = {str(tier): vars(share) for tier, share in sorted(self.tiers.items())}
        return {"plan_version": self.version, "rung": int(self.rung), "rows": self.rows, "shares": shares}


def plan_of(keys: Mapping[str, float], *, before: Plan) -> Plan:
    """Return the plan that `keys` (all valid: see `refusals`) say; without a version it keeps that of `before`."""
    shares: dict[int, dict[str, float]] = {}
    for key, value in keys.items():
        if match := _TIER_KEY.fullmatch(key):
            tier, part = int(match.group(1)), match.group(2)
            shares.setdefault(tier, {})[part] = value if part == "weight" else int(value)
    return Plan(
        version=int(keys.get(VERSION_KEY, before.version)),
        rung=Rung(int(keys[RUNG_KEY])),
        rows=int(keys.get(ROWS_KEY, 0)),
        tiers={tier: TierShare(**parts) for tier, parts in shares.items()},  # type: ignore[arg-type]
    )


def refusals(keys: Mapping[str, object], *, before: Plan, highest: Rung = Rung.TREE) -> list[str]:
    """Return why `keys` are no plan for an engine that runs `before` and whose ladder ends at `highest`."""
    wrong = [f"{key} is no plan key" for key in keys if not is_plan_key(key)]
    wrong += [reason for key, value in keys.items() if is_plan_key(key) and (reason := refusal(key, value, highest))]
    if RUNG_KEY not in keys:
        wrong.append(f"{RUNG_KEY} must be given: a plan replaces the one before it whole")
    return wrong or list(_contradictions(keys, before))


def _contradictions(keys: Mapping[str, Any], before: Plan) -> Iterator[str]:
    plan = plan_of(keys, before=before)
    if plan.version < before.version:
        yield f"{VERSION_KEY} must not be below that in force, which is {before.version} (found {plan.version})"
    for tier, share in plan.tiers.items():
        if share.floor > share.cap:
            yield f"sparktier_tier{tier}_floor must not exceed the tier's cap of {share.cap} (found {share.floor})"


def is_plan_key(key: str) -> bool:
    """Whether `key` is one of the contract's numeric keys."""
    return key in (VERSION_KEY, RUNG_KEY, ROWS_KEY) or bool(_TIER_KEY.fullmatch(key))


def refusal(key: str, value: object, highest: Rung = Rung.TREE) -> str | None:
    """Return why `value` can't be put under `key` on an engine whose ladder ends at `highest`, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return f"{key} must be a number (found {value!r})"
    if key == RUNG_KEY and value not in (rungs := [int(rung) for rung in Rung if rung <= highest]):
        return f"{key} must be one of {rungs} (found {value})"
    whole = not key.endswith("_weight")
    if value < 0 or (whole and value != int(value)) or value > 2**53:
        return f"{key} must be a {'whole ' if whole else ''}number of at least 0 (found {value})"
    match = _TIER_KEY.fullmatch(key)
    if match and int(match.group(1)) >= MAX_TIERS:
        return f"{key}: a tier id must be at most {HIGHEST_TIER_ID}"
    return None
