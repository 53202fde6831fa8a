"""A promise moves rows: weights by what a request is behind, survivals to plan by, a promise kept in the long run."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.cluster.arrays import Floats
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, PaceRules, planned_rows, usable_survival, weights
from sparktier.configs.step_times import reference_table

RULES = PaceRules(lead_tokens=4.0, lead_s=0.25, gain=2.0, most=3.0)
NAN = math.nan


def weight_of(
    promise_tok_s: float, since_first_s: float, delivered: int, tier_weight: float = 1.0, rules: PaceRules = RULES
) -> float:
    (weight,) = weights(
        tier_weight=np.array([tier_weight]),
        promise_tok_s=np.array([promise_tok_s]),
        since_first_s=np.array([since_first_s]),
        delivered_tokens=np.array([delivered]),
        rules=rules,
    )
    return float(weight)


@pytest.mark.parametrize(
    ("promise_tok_s", "since_first_s", "delivered", "weight"),
    [
        (0.0, 10.0, 1, 1.0),  # best effort, however slow
        (8.0, 0.0, 1, 3.0),  # the first token: no lead, 1 + beta
        (8.0, 1.0, 13, 1.0),  # 4 tokens ahead, the whole lead
        (8.0, 1.0, 99, 1.0),
        (8.0, 1.0, 11, 2.0),  # 2 tokens ahead, half of it
        (8.0, 1.0, 7, 4.0),  # 2 tokens behind
        (8.0, 60.0, 1, 7.0),  # hopeless: 1 + beta kappa
        (120.0, 1.0, 121, 3.0),
        (120.0, 1.0, 136, 2.0),  # half of a quarter second's 30 tokens
        (8.0, NAN, 0, 1.0),  # no token yet
        (8.0, 0.0, 0, 3.0),
        (8.0, -1.0, 1, 3.0),  # a clock that went back
    ],
)
def test_the_weight_is_that_of_the_formula(
    promise_tok_s: float, since_first_s: float, delivered: int, weight: float
) -> None:
    assert weight_of(promise_tok_s, since_first_s, delivered) == pytest.approx(weight)
    assert weight_of(promise_tok_s, since_first_s, delivered, tier_weight=2.5) == pytest.approx(2.5 * weight)


@given(st.floats(0.1, 500.0), st.floats(0.0, 1e4), st.integers(0, 10**6), st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_a_weight_rises_with_time_falls_with_tokens_and_stays_within_the_rules(
    promise_tok_s: float, since_first_s: float, delivered: int, gain: float, most: float
) -> None:
    rules = PaceRules(gain=gain, most=most)
    now = weight_of(promise_tok_s, since_first_s, delivered, rules=rules)
    assert 1.0 <= now <= (1.0 + gain * most) * (1 + 1e-12)
    assert weight_of(promise_tok_s, since_first_s + 1.0, delivered, rules=rules) >= now
    assert weight_of(promise_tok_s, since_first_s, delivered + 1, rules=rules) <= now


CURVE = np.array([[0.6, 0.4, 0.2]])


def planned_by(seen: list[float], age_steps: int, curve: Floats = CURVE) -> list[float]:
    survival = usable_survival(seen=np.array([seen]), age_steps=np.array([age_steps]), most_age_steps=2, curve=curve)
    return [float(value) for value in survival[0]]


@pytest.mark.parametrize("bad", [NAN, math.inf, -0.1, 1.5])
def test_survivals_that_are_no_chances_give_way_to_the_tiers_curve(bad: float) -> None:
    assert planned_by([0.9, 0.8, 0.7], 0) == [0.9, 0.8, 0.7]
    for place in range(3):
        seen = [0.9, 0.8, 0.7]
        seen[place] = bad
        assert planned_by(seen, 0) == [0.6, 0.4, 0.2]


@pytest.mark.parametrize(("age_steps", "fresh"), [(0, True), (2, True), (3, False), (-1, False)])
def test_stale_and_absent_survivals_give_way_to_the_tiers_curve(age_steps: int, fresh: bool) -> None:
    assert planned_by([0.9, 0.8, 0.7], age_steps) == ([0.9, 0.8, 0.7] if fresh else [0.6, 0.4, 0.2])


def test_without_a_curve_too_all_is_verified_that_the_rung_allows() -> None:
    unknown = np.full((2, 3), NAN)
    survival = usable_survival(seen=unknown, age_steps=np.array([-1, -1]), most_age_steps=2, curve=unknown)
    offered = Offers(survival, np.array([4, 3]), np.ones(2))
    assert planned_rows(offered, offered, StepTimeModel(reference_table("avx2")), rung=2).tolist() == [4, 3]


def test_one_request_without_survivals_changes_no_other() -> None:
    seen = np.array([[0.9, 0.8, 0.7], [NAN] * 3, [0.5, 0.5, 0.1]])
    survival = usable_survival(seen=seen, age_steps=np.zeros(3, int), most_age_steps=2, curve=np.tile(CURVE, (3, 1)))
    assert survival[[0, 2]].tolist() == seen[[0, 2]].tolist()
    assert survival[1].tolist() == [0.6, 0.4, 0.2]


def test_survivals_that_rise_along_nodes_are_levelled() -> None:
    assert planned_by([0.5, 0.7, 0.2], 0) == [0.5, 0.5, 0.2]


class Texts:
    """Users of stationary text: each step's chances are drawn anew about each user's own, and so are the outcomes."""

    def __init__(self, means: Floats, depth: int = 5) -> None:
        self.means, self.depth, self.rng = means, depth, np.random.default_rng(7)

    def survival(self) -> Floats:
        edges = self.rng.beta(4 * self.means[:, None], 4 * (1 - self.means[:, None]), (len(self.means), self.depth))
        survival: Floats = np.cumprod(edges, axis=1)
        return survival


def served(promise_tok_s: float, *, steps: int, rules: PaceRules = RULES, fixed: float = 0.0) -> tuple[float, Floats]:
    """Serve one promised user among seven of best effort, chains of 5 on AVX2.

    `fixed`: its weight, instead of that by its lead. Returns its rate and its lead after each step, in tokens.
    """
    texts, model = Texts(np.array([0.65, *np.linspace(0.4, 0.85, 7)])), StepTimeModel(reference_table("avx2"))
    promises = np.array([promise_tok_s, *[0.0] * 7])
    now_s, delivered, leads = 0.0, np.ones(8, dtype=np.int64), []
    for _ in range(steps):
        survival = texts.survival()
        weight = weights(
            tier_weight=np.ones(8),
            promise_tok_s=promises,
            since_first_s=np.full(8, now_s),
            delivered_tokens=delivered,
            rules=rules,
        )
        weight[0] = fixed or weight[0]
        offered = Offers(survival, np.full(8, 6), weight)
        rows = planned_rows(offered, offered, model, rung=2)
        # A drafted token is accepted where one uniform draw a user falls below its survival.
        accepted = (texts.rng.uniform(size=(8, 1)) < survival) & (np.arange(5) < (rows - 1)[:, None])
        delivered = delivered + 1 + accepted.sum(axis=1)
        now_s += float(model.step_ms(rung=2, requests=8, rows=np.array([rows.sum()]))[0]) / 1000.0
        leads.append(float(delivered[0] - 1) - promise_tok_s * now_s)
    return float(delivered[0] - 1) / now_s, np.array(leads)


def test_one_promised_user_gets_in_the_long_run_what_its_largest_weight_could_give() -> None:
    """The promise is what its largest weight gives, less 5%; without a promise it gets less than that."""
    largest, _ = served(0.0, steps=1_500, fixed=1 + RULES.gain * RULES.most)
    promise_tok_s = largest / 1.05
    blind, _ = served(0.0, steps=1_500)
    assert blind < 0.97 * promise_tok_s
    rate, leads = served(promise_tok_s, steps=3_000)
    # What is missing doesn't grow: the lead wanders about a place near 0, where without weights it falls by 800 tokens.
    assert leads.min() > -80.0
    assert leads[1_500:].mean() == pytest.approx(leads[:1_500].mean(), abs=10.0)
    assert rate >= 0.99 * promise_tok_s
