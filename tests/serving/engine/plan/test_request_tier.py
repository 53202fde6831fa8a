"""A request's tier: the one it names if the plan knows it, and the promise it was admitted with to its end."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparktier.configs.plan_keys import TIER_PARAM, EnginePlan, TierTerms
from sparktier.serving.engine.plan.request_tier import Admitted, admitted, is_unknown, tier_of
from sparktier.serving.engine.slots.request_slots import SlotTable

PLAN = EnginePlan(default_tier=7, tiers={1: TierTerms(), 2: TierTerms(80.0, weight=2.0), 7: TierTerms(40.0)})


def request(custom_params: object) -> Any:
    params = SimpleNamespace(custom_params=custom_params, max_new_tokens=30)
    return SimpleNamespace(sampling_params=params, origin_input_ids=[0] * 12)


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
    assert tier_of(request(params), PLAN) == tier
    assert is_unknown(request(params), PLAN) is unknown


def test_a_request_keeps_what_it_was_admitted_with() -> None:
    one = request({TIER_PARAM: 2})
    assert admitted(one, PLAN) == Admitted(tier=2, promise_tok_s=80.0, weight=2.0)
    later = EnginePlan(tiers={0: TierTerms(5.0)})
    assert admitted(one, later) == Admitted(tier=2, promise_tok_s=80.0, weight=2.0)
    assert tier_of(one, later) == 2
    assert admitted(request({TIER_PARAM: 2}), later) == Admitted(tier=0, promise_tok_s=5.0, weight=1.0)


def test_one_that_waits_has_the_tier_that_the_plan_in_force_gives_it() -> None:
    one = request({TIER_PARAM: 2})
    assert tier_of(one, EnginePlan()) == 0
    assert tier_of(one, PLAN) == 2


def test_slots_hold_the_terms_of_admission_through_a_second_prefill() -> None:
    table = SlotTable(4, device=torch.device("cpu"))
    strict, plain = request({TIER_PARAM: 2}), request(None)
    table.add_requests([strict, plain], torch.tensor([3, 1]), plan=PLAN)
    later = EnginePlan(tiers={0: TierTerms(5.0)})
    table.add_requests([strict], torch.tensor([2]), plan=later)
    assert table.tier.tolist() == [0, 7, 2, 2]
    assert table.promise_tok_s.tolist() == [0.0, 40.0, 80.0, 80.0]
    assert table.weight.tolist() == [1.0, 1.0, 2.0, 2.0]
    assert table.room(torch.tensor([2]), torch.tensor([12])).tolist() == [29]
