"""One table of what a request says of its tier and what comes of it, for every transport to be held against."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.settings.gateway import GatewaySettings
from sparktier.configs.settings.tiers import TierSettings
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.tier_resolution import Entitlement, TierAsk, TierTable
from support.inputs.tier_cases import CASES, ENTITLED, GATEWAY, TIERS, TierCase

TABLE = TierTable(TIERS, GATEWAY)
FIELDS = st.sampled_from([None, "gold", "fast", "standard", "none", ""])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_first_source_decides_and_the_tenant_must_be_entitled(case: TierCase) -> None:
    if case.tier is not None:
        assert TABLE.names[TABLE.resolve(case.ask, ENTITLED)] == case.tier
        return
    with pytest.raises(Refused) as caught:
        TABLE.resolve(case.ask, ENTITLED)
    assert (caught.value.status, caught.value.param, caught.value.code) == (case.status, case.param, case.code)
    assert case.says in str(caught.value)


def test_a_tenant_s_own_default_is_served() -> None:
    fast = TABLE.ids["fast"]
    for ask in (TierAsk(), TierAsk(service_tier="auto"), TierAsk(service_tier="default")):
        assert TABLE.resolve(ask, Entitlement(frozenset({fast}), fast)) == fast


def test_service_tiers_that_the_settings_do_not_map_are_refused() -> None:
    unmapped = TierTable(TIERS, GatewaySettings())
    with pytest.raises(Refused, match=r"must be one of auto, default \(found \"flex\"\)"):
        unmapped.resolve(TierAsk(service_tier="flex"), unmapped.everything)


@given(
    field=FIELDS,
    header=FIELDS,
    service_tier=FIELDS | st.sampled_from(["auto", "flex", "priority", 3, True]) | st.lists(st.integers()),
    tpot_ms=st.none() | st.floats() | st.text(),
    tiers=st.sets(st.sampled_from(sorted(TIERS)), min_size=1),
)
def test_a_tier_that_is_resolved_is_always_one_of_the_tenant_s(
    field: str | None, header: str | None, service_tier: object, tpot_ms: str | float | None, tiers: set[int]
) -> None:
    entitled = Entitlement(frozenset(tiers), min(tiers))
    ask = TierAsk(field, header, service_tier, tpot_ms)
    try:
        assert TABLE.resolve(ask, entitled) in tiers
    except Refused as error:
        assert error.status in (400, 403)  # noqa: PT017 - either is right
        assert ask != TierAsk()


@given(tpot_ms=st.floats(1, 1e4), promises=st.lists(st.floats(0.5, 500), min_size=1, max_size=5))
def test_the_slowest_tier_that_is_fast_enough_serves(tpot_ms: float, promises: list[float]) -> None:
    tiers = {number: TierSettings(name=f"t{number}", promise_tok_s=promise) for number, promise in enumerate(promises)}
    tiers[60] = TierSettings(name="best-effort", default=True)
    table = TierTable(tiers, GatewaySettings())
    enough = [promise for promise in promises if promise >= 1000 / tpot_ms]
    if not enough:
        with pytest.raises(Refused, match="no tier promises"):
            table.resolve(TierAsk(tpot_ms=tpot_ms), table.everything)
    else:
        assert promises[table.resolve(TierAsk(tpot_ms=tpot_ms), table.everything)] == min(enough)


def test_the_engine_knows_who_yields() -> None:
    tiers = {0: TierSettings(name="strict", default=True, promise_tok_s=9.0), 1: TierSettings(name="b", yields=True)}
    table = TierTable(tiers, GatewaySettings())
    assert (table.priority(0), table.priority(1)) == ({"priority": 1}, {"priority": 0})
    assert TierTable({0: tiers[0]}, GatewaySettings()).priority(0) == {}
