"""What requests say of their tiers, and the tier or the refusal that must come of it, whichever transport they take.

`ask.field` is the gRPC field; a transport without it leaves those cases out.
"""

from dataclasses import dataclass

from sparktier.configs.settings.gateway import GatewaySettings
from sparktier.configs.settings.tiers import TierSettings
from sparktier.serving.gateway.tier_resolution import Entitlement, TierAsk

TIERS = {
    0: TierSettings(name="standard", default=True),
    1: TierSettings(name="fast", promise_tok_s=20),
    2: TierSettings(name="faster", promise_tok_s=40),
    5: TierSettings(name="gold", promise_tok_s=100),
}
GATEWAY = GatewaySettings(priority_tier="gold", flex_tier="fast")
# Not gold.
ENTITLED = Entitlement(frozenset({0, 1, 2}), 0)
YOURS = "Use one of standard, fast, faster."


@dataclass(frozen=True)
class TierCase:
    """One request: served as `tier`, or without it refused with `status`, `param`, `code` and what the message says."""

    name: str
    ask: TierAsk
    tier: str | None = None
    status: int = 400
    param: str = ""
    code: str = ""
    says: str = ""


def _served(name: str, ask: TierAsk, tier: str) -> TierCase:
    return TierCase(name, ask, tier)


def _unknown(name: str, ask: TierAsk, param: str, says: str = YOURS) -> TierCase:
    return TierCase(name, ask, None, 400, param, "unknown_tier", says)


def _forbidden(name: str, ask: TierAsk, param: str) -> TierCase:
    return TierCase(name, ask, None, 403, param, "tier_not_allowed", f"may not use the tier gold. {YOURS}")


def _invalid(value: str) -> TierCase:
    says = "must be a number of milliseconds above 0"
    return TierCase(f"speed {value}", TierAsk(tpot_ms=value), None, 400, "x-slo-tpot-ms", "invalid_value", says)


def _unsupported(name: str, value: object) -> TierCase:
    says = "must be one of auto, default, priority, flex"
    return TierCase(name, TierAsk(service_tier=value), None, 400, "service_tier", "unsupported_parameter", says)


CASES = (
    # What each source means alone.
    _served("nothing", TierAsk(), "standard"),
    _served("field", TierAsk(field="fast"), "fast"),
    _served("header", TierAsk(header="fast"), "fast"),
    _served("header with spaces", TierAsk(header=" fast "), "fast"),
    _served("auto", TierAsk(service_tier="auto"), "standard"),
    _served("default", TierAsk(service_tier="default"), "standard"),
    _served("flex", TierAsk(service_tier="flex"), "fast"),
    _served("speed of a tier", TierAsk(tpot_ms="50"), "fast"),
    _served("speed just above a tier", TierAsk(tpot_ms="49.9"), "faster"),
    _served("slow speed", TierAsk(tpot_ms="1000"), "fast"),
    # Each decides over all below it.
    _served("field first", TierAsk("fast", "gold", "priority", "x"), "fast"),
    _served("header second", TierAsk(None, "fast", "priority", "x"), "fast"),
    _served("service_tier third", TierAsk(None, None, "flex", "25"), "fast"),
    _served("auto is named too", TierAsk(None, None, "auto", "25"), "standard"),
    _served("speed fourth", TierAsk(None, None, None, "25"), "faster"),
    # A source that is refused hides no other.
    _unknown("unknown field", TierAsk("none", "fast", "flex", "50"), "tier"),
    _unknown("unknown header", TierAsk(None, "none", "flex", "50"), "x-sparktier-tier"),
    _unknown("empty header", TierAsk(header=""), "x-sparktier-tier"),
    _unknown("another case", TierAsk(header="Fast"), "x-sparktier-tier"),
    _unknown("an id", TierAsk(header="1"), "x-sparktier-tier"),
    _unknown("two headers", TierAsk(header="fast, faster"), "x-sparktier-tier"),
    _unsupported("custom service_tier", "fast"),
    _unsupported("other service_tier", "scale"),
    _unsupported("service_tier of another type", 3),
    _unsupported("service_tier as a list", ["auto"]),
    _unknown("too fast for all", TierAsk(tpot_ms="9.9"), "x-slo-tpot-ms", "you may use promises 40. Ask for 25 ms"),
    *map(_invalid, ("", "fast", "0", "-1", "nan", "inf", "1e-320")),
    # What the tenant may not use.
    _forbidden("field of another", TierAsk(field="gold"), "tier"),
    _forbidden("header of another", TierAsk(header="gold"), "x-sparktier-tier"),
    _forbidden("priority of another", TierAsk(service_tier="priority"), "service_tier"),
    _forbidden("speed of another", TierAsk(tpot_ms="20"), "x-slo-tpot-ms"),
)
