"""What ranks are told: it arrives as it was sent."""

import pytest

from sparktier.configs.plan_keys import TierTerms
from sparktier.serving.engine.rank_options import (
    FeatureOptions,
    LadderOptions,
    RankOptions,
    TreeBounds,
    fresh_endpoint,
    rank_options,
)

TIERS = {1: TierTerms(), 7: TierTerms(80.0, weight=2.0, cap_tokens=4)}


@pytest.mark.parametrize(
    "options",
    [
        RankOptions(),
        RankOptions(tiers=TIERS, default_tier=7, safe_rung=0),
        RankOptions(ladder=LadderOptions(short_tokens=2)),
        RankOptions(
            tiers=TIERS,
            default_tier=7,
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
