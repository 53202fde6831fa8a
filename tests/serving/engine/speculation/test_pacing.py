"""What the pacer makes of a step's requests: weights by promise and clock, survivals by request and tier, and rows."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, planned_rows
from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms
from sparktier.configs.step_times import reference_table
from sparktier.kernels.select import highest
from sparktier.serving.engine.speculation.pacing import Pacer

STRICT, LENIENT = 1, 0
TIMES = StepTimeModel(reference_table("avx2"))
PLAN = EnginePlan(rung=Rung.TREE, tiers={LENIENT: TierTerms(), STRICT: TierTerms(promise_tok_s=100.0)})
# [request, candidate]: the anchor, then nodes in the order in which they were found.
DRAFTED = torch.tensor([[1.0, 0.5, 0.9, 0.2], [1.0, 0.8, 0.8, 0.1]])


def request(rid: str, tier: int = LENIENT, *, tokens: int = 1, first_s: float | None = None) -> Any:
    params = SimpleNamespace(custom_params={"sparktier_tier": tier})
    found = SimpleNamespace(rid=rid, sampling_params=params, origin_input_ids=[1] * 5, output_ids=[2] * tokens)
    if first_s is not None:
        found.sparktier_first_token_s = first_s
    return found


def pacer(*, live: bool = True, now_s: float = 10.0) -> Pacer:
    return Pacer(TIMES, live=live, clock=lambda: now_s)


def begin(paced: Pacer, *requests: Any, plan: EnginePlan = PLAN, most_rows: int = 4) -> Any:
    return paced.begin(requests, plan, most_rows=torch.full((len(requests),), most_rows), nodes=3)


def test_the_total_is_of_earlier_survivals_and_the_shares_are_of_this_steps_drafts() -> None:
    paced, requests = pacer(), (request("a"), request("b"))
    first = begin(paced, *requests)
    first.row_counts(DRAFTED, drawn=False)
    second = begin(paced, *requests)
    swapped = DRAFTED.flip(0)
    rows = second.row_counts(swapped, drawn=False).row_counts
    lagged = Offers(np.array([[0.9, 0.5, 0.2], [0.8, 0.8, 0.1]]), np.array([4, 4]), np.ones(2))
    live = Offers(lagged.survival[::-1], lagged.most_rows, lagged.weight)
    expected = planned_rows(lagged, live, TIMES, rung=Rung.TREE, context_tokens=12)
    assert rows.tolist() == expected.tolist()
    np.testing.assert_allclose(second.step.offers.survival, lagged.survival, rtol=1e-6)


@pytest.mark.parametrize(("live", "drawn"), [(False, False), (True, True), (False, True)])
def test_neither_drawn_drafts_nor_those_of_a_gpu_decide_their_own_rows(live: bool, drawn: bool) -> None:
    paced, requests = pacer(live=live), (request("a"), request("b"))
    for _ in range(2):
        begin(paced, *requests).row_counts(DRAFTED, drawn=drawn)
    step = begin(paced, *requests)
    planned = step.step.rows.tolist()
    assert step.row_counts(DRAFTED.flip(0), drawn=drawn).row_counts.tolist() == planned


def test_a_request_behind_its_promise_weighs_more_than_one_ahead_and_than_best_effort() -> None:
    behind, ahead = request("a", STRICT, tokens=3, first_s=9.0), request("b", STRICT, tokens=400, first_s=9.0)
    fresh, lenient = request("c", STRICT), request("d", tokens=3, first_s=9.0)
    weight = begin(pacer(now_s=10.0), behind, ahead, fresh, lenient).step.offers.weight.tolist()
    assert weight == [3.0, 1.0, 1.0, 1.0]


def test_a_new_request_is_planned_by_its_tiers_curve_and_one_that_was_forgotten_too() -> None:
    paced, old = pacer(), request("a", STRICT)
    begin(paced, old).row_counts(DRAFTED[:1], drawn=False)
    paced.forget("a")
    survival = begin(paced, request("new", STRICT), old, request("other", LENIENT)).step.offers.survival
    np.testing.assert_allclose(survival, [[0.9, 0.5, 0.2], [0.9, 0.5, 0.2], [1.0, 1.0, 1.0]], rtol=1e-6)


def test_survivals_of_another_rung_and_old_ones_are_not_used() -> None:
    paced, requests = pacer(), (request("a"), request("b"))
    begin(paced, *requests).row_counts(DRAFTED, drawn=False)
    chain = EnginePlan(rung=Rung.CHAIN, tiers=PLAN.tiers)
    np.testing.assert_array_equal(begin(paced, *requests, plan=chain).step.offers.survival, np.ones((2, 3)))
    for _ in range(4):
        begin(paced, requests[1]).row_counts(DRAFTED[1:], drawn=False)
    sat_out = begin(paced, requests[0]).step.offers.survival[0]
    # The tier's mean, by now mostly that of the other request.
    assert sat_out[1] > 0.6


def test_the_curve_of_drawn_drafts_follows_what_was_accepted() -> None:
    paced, asked = pacer(), request("a")
    for _ in range(50):
        rows = begin(paced, asked).row_counts(DRAFTED[:1], drawn=True)
        paced.accepted(Rung.TREE, [LENIENT], rows.expected, [0.5 * rows.expected[0]])  # type: ignore[list-item]
    np.testing.assert_allclose(begin(paced, asked).step.offers.survival, [[0.45, 0.25, 0.1]], rtol=1e-4)


def test_the_row_budget_of_the_plan_bounds_the_total() -> None:
    paced = pacer()
    bound = EnginePlan(rung=Rung.TREE, rows=3, tiers=PLAN.tiers)
    step = begin(paced, request("a"), request("b"), plan=bound)
    assert step.row_counts(DRAFTED, drawn=False).row_counts.sum() <= 3


def test_expected_tokens_are_those_of_the_rows_that_are_verified() -> None:
    paced, asked = pacer(), request("a")
    found = begin(paced, asked, most_rows=3).row_counts(DRAFTED[:1], drawn=False)
    falling = [0.9, 0.5, 0.2]
    assert found.expected == pytest.approx([sum(falling[: int(found.row_counts[0]) - 1])])
    assert found.row_counts[0] <= 3


def test_the_drift_follows_a_slow_machine_and_moves_no_rows() -> None:
    paced, requests = pacer(), (request("a"), request("b"))
    rows = begin(paced, *requests).row_counts(DRAFTED, drawn=False).row_counts
    assert paced.drift_frac == 1.0
    predicted_ms = float(TIMES.step_ms(rung=Rung.TREE, requests=2, rows=np.array([6]), context_tokens=12)[0])
    for _ in range(200):
        paced.took(1.5 * predicted_ms, requests, rung=Rung.TREE, rows=6)
    assert paced.drift_frac == pytest.approx(1.5, rel=0.01)
    again = pacer()
    assert begin(again, *requests).row_counts(DRAFTED, drawn=False).row_counts.tolist() == rows.tolist()
    second = begin(paced, *requests).row_counts(DRAFTED, drawn=False).row_counts
    assert second.tolist() == begin(again, *requests).row_counts(DRAFTED, drawn=False).row_counts.tolist()


@pytest.mark.parametrize("drawn", [False, True])
def test_a_decided_step_tells_the_planner_with_its_results_what_others_tell_at_once(drawn: bool) -> None:
    """Nothing waits for a GPU between draft and verify, so what drafts promised arrives with the step's results."""
    at_once, later, requests = pacer(live=False), pacer(live=False), (request("a"), request("b"))
    told = begin(at_once, *requests).row_counts(DRAFTED, drawn=drawn)
    step = replace(begin(later, *requests), is_decided=True)
    assert step.step.rows.tolist() == told.row_counts.tolist()
    assert step.keep(highest(survival=DRAFTED, nodes=step.nodes), drawn=drawn) == told.expected
    offers = [begin(paced, *requests).step.offers for paced in (at_once, later)]
    np.testing.assert_array_equal(offers[0].survival, offers[1].survival)
