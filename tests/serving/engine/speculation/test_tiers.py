"""Tiers of requests: the gateway's id where it is known, the default for anything else, and what is counted."""

import pytest

from sparktier.serving.engine.tiers import PARAM, Tiers, load

TIERS = Tiers(ids=(1, 2, 7), default=7)


@pytest.mark.parametrize(
    ("params", "tier", "unknown"),
    [
        ({PARAM: 2}, 2, False),
        ({PARAM: 2.0, "other": 1}, 2, False),
        ({PARAM: 7}, 7, False),
        ({}, 7, False),
        (None, 7, False),
        ({PARAM: None}, 7, False),
        ({PARAM: 3}, 7, True),
        ({PARAM: 2.5}, 7, True),
        ({PARAM: -1}, 7, True),
        ({PARAM: True}, 7, True),
        ({PARAM: "2"}, 7, True),
        ({PARAM: [2]}, 7, True),
        ({PARAM: float("nan")}, 7, True),
        ({PARAM: float("inf")}, 7, True),
        ("text", 7, False),
    ],
)
def test_a_request_has_the_tier_it_names_if_that_is_known(params: object, tier: int, unknown: bool) -> None:
    assert TIERS.of(params) == tier
    assert TIERS.is_unknown(params) is unknown


def test_tiers_travel_to_the_ranks() -> None:
    assert load(TIERS.dump()) == TIERS
