"""Which tier serves a request: what it says of its tier, in whichever transport, and what its tenant may use. Pure.

The first of these that a request has decides:

    the gRPC field `tier`          the tier of that name
    the header `x-sparktier-tier`  the tier of that name
    `service_tier` of the body     `auto`, `default`: the tenant's default; `priority`, `flex`: tiers of the settings
    the header `x-slo-tpot-ms`     the slowest tier that promises at least 1000 / x tok/s
    nothing                        the tenant's default
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sparktier.cluster.admission.gate import Terms
from sparktier.configs.plan_keys import PROMISED_PRIORITY, YIELDING_PRIORITY
from sparktier.configs.settings.gateway import GatewaySettings
from sparktier.configs.settings.tiers import TierSettings
from sparktier.serving.gateway.refused import Refused

TIER_FIELD = "tier"
TIER_HEADER = "x-sparktier-tier"
ASKED_TIER_HEADER = "x-sparktier-asked-tier"
"""Tells in an answer the tier that was asked for, where another one serves the request."""
TPOT_HEADER = "x-slo-tpot-ms"
SERVICE_TIER = "service_tier"
_TENANTS_DEFAULT = ("auto", "default")
_UNKNOWN, _FORBIDDEN, _UNSUPPORTED = "unknown_tier", "tier_not_allowed", "unsupported_parameter"
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class TierAsk:
    """What one request says of its tier, as it was sent; None is not said."""

    field: str | None = None
    header: str | None = None
    service_tier: object = None
    tpot_ms: str | float | None = None


@dataclass(frozen=True)
class Entitlement:
    """The tiers that a tenant may use, and the one of its requests that name none."""

    tiers: frozenset[int]
    default: int


class TierTable:
    """The tiers of the settings, what they promise requests that wait, and the resolution of requests to them."""

    def __init__(self, tiers: Mapping[int, TierSettings], gateway: GatewaySettings) -> None:
        self.settings = tiers
        self.names: Mapping[int, str] = {tier_id: tier.name for tier_id, tier in tiers.items()}
        self.ids: Mapping[str, int] = {name: tier_id for tier_id, name in self.names.items()}
        self.default = next(tier_id for tier_id, tier in tiers.items() if tier.default)
        self._promises = {tier_id: tier.promised_tok_s for tier_id, tier in tiers.items()}
        self.terms: Mapping[int, Terms] = {tier_id: self._terms(tier) for tier_id, tier in tiers.items()}
        mapped = {"priority": gateway.priority_tier, "flex": gateway.flex_tier}
        self._service_tiers = {value: self.ids[name] for value, name in mapped.items() if name is not None}

    @property
    def everything(self) -> Entitlement:
        """Return what a client may use where no keys are configured."""
        return Entitlement(frozenset(self.names), self.default)

    def priority(self, tier: int) -> dict[str, int]:
        """Return the field by which the engine knows requests that yield from others; nothing where no tier yields."""
        if not any(terms.yields for terms in self.terms.values()):
            return {}
        return {"priority": YIELDING_PRIORITY if self.terms[tier].yields else PROMISED_PRIORITY}

    def _terms(self, tier: TierSettings) -> Terms:
        return Terms(
            ttft_s=None if tier.ttft_ms is None else tier.ttft_ms / 1000,
            on_full=tier.on_full,
            downgrade_to=None if tier.downgrade_to is None else self.ids.get(tier.downgrade_to),
            yields=tier.yields,
        )

    def resolve(self, ask: TierAsk, entitled: Entitlement) -> int:
        """Return the id of the tier that serves a request.

        Raises:
            Refused: 400 for a tier that there is not, 403 for one that the tenant may not use.
        """
        if ask.field is not None:
            return self._named(ask.field, TIER_FIELD, entitled)
        if ask.header is not None:
            return self._named(ask.header.strip(), TIER_HEADER, entitled)
        if ask.service_tier is not None:
            return self._of_service_tier(ask.service_tier, entitled)
        if ask.tpot_ms is not None:
            return self._fast_enough(ask.tpot_ms, entitled)
        return entitled.default

    def _named(self, name: str, param: str, entitled: Entitlement) -> int:
        tier = self.ids.get(name)
        if tier is None:
            message = f"{param}: must be a tier (found {_shown(name)}). {self._yours(entitled)}"
            raise Refused(message, param=param, code=_UNKNOWN)
        return self._allowed(tier, param, entitled)

    def _of_service_tier(self, value: object, entitled: Entitlement) -> int:
        if value in _TENANTS_DEFAULT:
            return entitled.default
        if not isinstance(value, str) or value not in self._service_tiers:
            known = ", ".join([*_TENANTS_DEFAULT, *self._service_tiers])
            message = (
                f"{SERVICE_TIER}: must be one of {known} (found {_shown(value)}). Name other tiers in the header "
                f"{TIER_HEADER}."
            )
            raise Refused(message, param=SERVICE_TIER, code=_UNSUPPORTED)
        return self._allowed(self._service_tiers[value], SERVICE_TIER, entitled)

    def _fast_enough(self, tpot_ms: str | float, entitled: Entitlement) -> int:
        """Return the slowest tier that promises the speed, of those that the tenant may use where one of them does."""
        tok_s = 1000 / _positive(tpot_ms)
        tier = self._slowest(tok_s, entitled.tiers)
        if tier is not None:
            return tier
        elsewhere = self._slowest(tok_s, self._promises)
        if elsewhere is not None:
            return self._allowed(elsewhere, TPOT_HEADER, entitled)
        fastest = max(self._promises[tier] for tier in entitled.tiers)
        message = (
            f"{TPOT_HEADER}: no tier promises {tok_s:g} tok/s a user; the fastest that you may use promises "
            f"{fastest:g}. Ask for {1000 / fastest:g} ms or more."
            if fastest
            else f"{TPOT_HEADER}: no tier that you may use promises a speed. Leave it out."
        )
        raise Refused(message, param=TPOT_HEADER, code=_UNKNOWN)

    def _slowest(self, tok_s: float, tiers: Iterable[int]) -> int | None:
        enough = [tier for tier in tiers if self._promises[tier] >= tok_s]
        return min(enough, key=lambda tier: (self._promises[tier], tier), default=None)

    def _allowed(self, tier: int, param: str, entitled: Entitlement) -> int:
        if tier not in entitled.tiers:
            message = f"{param}: this tenant may not use the tier {self.names[tier]}. {self._yours(entitled)}"
            raise Refused(message, status=403, param=param, code=_FORBIDDEN)
        return tier

    def _yours(self, entitled: Entitlement) -> str:
        names = ", ".join(self.names[tier] for tier in sorted(entitled.tiers))
        return f"Use one of {names}."


def _positive(tpot_ms: str | float) -> float:
    try:
        value = float(tpot_ms)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf or math.isinf(1000 / value):
        message = f"{TPOT_HEADER}: must be a number of milliseconds above 0 (found {_shown(tpot_ms)}). Correct it."
        raise Refused(message, param=TPOT_HEADER, code="invalid_value")
    return value


def _shown(value: object) -> str:
    return json.dumps(value[:_SHOWN_CHARACTERS]) if isinstance(value, str) else type(value).__name__
