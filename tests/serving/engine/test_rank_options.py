"""What ranks are told: it arrives as it was sent, and a request has the tier that it names where that is known."""

import pytest

from sparktier.configs.plan_keys import TIER_PARAM
from sparktier.serving.engine.rank_options import (
    FeatureOptions,
    LadderOptions,
    RankOptions,
    Tiers,
    TreeBounds,
    fresh_endpoint,
    rank_options,
)

TIERS = Tiers(ids=(1, 2, 7), default=7)


@pytest.mark.parametrize(
    ("params", "tier", "unknown"),
    [
        ({TIER_PARAM: 2}, 2, False),
        ({TIER_PARAM: 2.0, "other": 1}, 2, False),
        ({TIER_PARAM: 7}, 7, False),
        ({}, 7, False),
        (None, 7, False),
        ({TIER_PARAM: None}, 7, False),
        ({TIER_PARAM: 3}, 7, True),
        ({TIER_PARAM: 2.5}, 7, True),
        ({TIER_PARAM: -1}, 7, True),
        ({TIER_PARAM: True}, 7, True),
        ({TIER_PARAM: "2"}, 7, True),
        ({TIER_PARAM: [2]}, 7, True),
        ({TIER_PARAM: float("nan")}, 7, True),
        ({TIER_PARAM: float("inf")}, 7, True),
        ("text", 7, False),
    ],
)
def test_a_request_has_the_tier_it_names_if_that_is_known(params: object, tier: int, unknown: bool) -> None:
    assert TIERS.of(params) == tier
    assert TIERS.is_unknown(params) is unknown


@pytest.mark.parametrize(
    "options",
    [
        RankOptions(),
        RankOptions(tiers=TIERS),
        RankOptions(ladder=LadderOptions(short_tokens=2)),
        RankOptions(
            tiers=TIERS,
            ladder=LadderOptions(
                short_tokens=1, block_tokens=5, accept_rule="ratio", tree=TreeBounds(rows=12, parents=4, children=3)
            ),
            features=FeatureOptions(target_layer_ids=(1, 5), records_at_once=3, endpoint=fresh_endpoint()),
        ),
    ],
)
def test_options_travel_to_the_ranks(options: RankOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in options.environment().items():
        monkeypatch.setenv(name, value)
    assert rank_options() == options


def test_a_process_that_was_told_nothing_has_no_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARKTIER_RANK_OPTIONS", raising=False)
    assert rank_options() == RankOptions()


def test_each_deployment_has_an_endpoint_of_its_own() -> None:
    assert fresh_endpoint() != fresh_endpoint()
