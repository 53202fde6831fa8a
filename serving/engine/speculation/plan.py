"""The plan in force on one rank: rung, row budget, and each tier's cap, as the controller sets them by numeric keys.

Pure. Every rank applies the same numbers between the same two steps, so all ranks of a group run the same depth.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

_TIER_KEY = re.compile(r"sparktier_tier(\d{1,3})_(floor|cap|weight)")
MAX_TIERS = 256
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

    def updated(self, keys: Mapping[str, float]) -> "Plan":
        """Return this plan with `keys` (the contract's, all valid: see `refusal`) put in."""
        plan = self
        for key, value in keys.items():
            plan = plan._with(key, value)
        return plan

    def _with(self, key: str, value: float) -> "Plan":
        if key == "sparktier_plan_version":
            return replace(self, version=int(value))
        if key == "sparktier_rung":
            return replace(self, rung=Rung(int(value)))
        if key == "sparktier_rows":
            return replace(self, rows=int(value))
        tier, part = _tier_key(key)
        share = self.tiers.get(tier, TierShare())
        if part == "weight":
            changed = replace(share, weight=value)
        elif part == "floor":
            changed = replace(share, floor=int(value))
        else:
            changed = replace(share, cap=int(value))
        return replace(self, tiers={**self.tiers, tier: changed})


def is_plan_key(key: str) -> bool:
    """Whether `key` is one of the contract's numeric keys."""
    return key in ("sparktier_plan_version", "sparktier_rung", "sparktier_rows") or bool(_TIER_KEY.fullmatch(key))


def refusal(key: str, value: object, *, highest: Rung = Rung.TREE) -> str | None:
    """Return why `value` can't be put under `key` on an engine whose ladder ends at `highest`, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return f"{key} must be a number (found {value!r})"
    if key == "sparktier_rung" and value not in (rungs := [int(rung) for rung in Rung if rung <= highest]):
        return f"{key} must be one of {rungs} (found {value})"
    whole = not key.endswith("_weight")
    if value < 0 or (whole and value != int(value)) or value > 2**53:
        return f"{key} must be a {'whole ' if whole else ''}number of at least 0 (found {value})"
    match = _TIER_KEY.fullmatch(key)
    if match and int(match.group(1)) >= MAX_TIERS:
        return f"{key}: a tier id must be below {MAX_TIERS}"
    return None


def _tier_key(key: str) -> tuple[int, str]:
    match = _TIER_KEY.fullmatch(key)
    assert match is not None, f"checked by is_plan_key: {key}"
    return int(match.group(1)), match.group(2)
