"""What follows from the planner's objective, for any step: optimal, Pareto, fair to a raised weight, bounded in price.

One set of survivals decides total and rows here. By brute force where "no other" is claimed.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.cluster.arrays import Floats, Ints
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Expected, Offers, best_total, expected, planned_rows, share_out
from sparktier.configs.step_times import StepTimeTable, reference_table
from support.step_tables import step_tables

RUNG = 2
NEAR = 1e-9
WEIGHTS = st.sampled_from([0.25, 1.0, 1.5, 2.0, 7.0])
# Ties, certainty and nodes that are not there come up as often as everything else.
CHANCES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0.01, 1.0))


@st.composite
def offers(draw: st.DrawFn, weights: st.SearchStrategy[float] = WEIGHTS) -> Offers:
    """Draw what a few requests offer."""
    requests, nodes = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    edges = draw(st.lists(CHANCES, min_size=requests * nodes, max_size=requests * nodes))
    rows = st.lists(st.integers(1, nodes + 2), min_size=requests, max_size=requests)
    return Offers(
        survival=np.cumprod(np.array(edges).reshape(requests, nodes), axis=1),
        most_rows=np.array(draw(rows), dtype=np.int64),
        weight=np.array(draw(st.lists(weights, min_size=requests, max_size=requests))),
    )


def tokens_of(offered: Offers, rows: Ints) -> Floats:
    """[n, requests] expected tokens of `rows` [n, requests], reckoned another way than the planner does."""
    requests, nodes = offered.survival.shape
    sums = np.concatenate([np.ones((requests, 1)), 1 + np.cumsum(offered.survival, axis=1)], axis=1)
    return sums[np.arange(requests), np.minimum(rows - 1, nodes)]


def all_rows(offered: Offers) -> Ints:
    """[n, requests] every way to give each request from one row to all that it may have."""
    nodes = offered.survival.shape[1]
    ways = np.indices(np.minimum(offered.most_rows, nodes + 1)).reshape(len(offered.weight), -1).T
    return (ways + 1).astype(np.int64)


def reached(offered: Offers, model: StepTimeModel, **bounds: int) -> tuple[Ints, Expected]:
    """What the planner makes of `offered`."""
    rows = planned_rows(offered, offered, model, rung=RUNG, **bounds)
    return rows, expected(offered, rows, model, rung=RUNG)


def times_of(model: StepTimeModel, rows: Ints) -> Floats:
    return model.step_ms(rung=RUNG, requests=rows.shape[1], rows=rows.sum(axis=1))


@given(offers(), st.integers(0, 30))
def test_no_other_rows_of_a_total_are_worth_more(offered: Offers, total: int) -> None:
    rows = share_out(offered, total)
    ways = all_rows(offered)
    ways = ways[ways.sum(axis=1) <= max(total, len(rows))]
    best = (tokens_of(offered, ways) @ offered.weight).max()
    assert tokens_of(offered, rows[None])[0] @ offered.weight == pytest.approx(best)
    assert (rows >= 1).all()
    assert (rows <= offered.most_rows).all()
    assert rows.sum() <= max(total, len(rows))


@settings(max_examples=300)
@given(offers(), step_tables())
def test_no_other_total_and_rows_yield_more_for_their_time(offered: Offers, table: StepTimeTable) -> None:
    model = StepTimeModel(table)
    _, planned = reached(offered, model)
    ways = all_rows(offered)
    best = (tokens_of(offered, ways) @ offered.weight / times_of(model, ways)).max()
    assert planned.tokens @ offered.weight / planned.step_ms == pytest.approx(best)


@given(offers(), step_tables(), st.integers(0, 20))
def test_within_a_budget_none_yields_more_and_each_request_has_its_anchor(
    offered: Offers, table: StepTimeTable, budget: int
) -> None:
    model = StepTimeModel(table)
    rows, planned = reached(offered, model, row_budget=budget)
    assert rows.sum() <= max(budget, len(rows))
    ways = all_rows(offered)
    ways = ways[ways.sum(axis=1) <= max(budget, len(rows))]
    best = (tokens_of(offered, ways) @ offered.weight / times_of(model, ways)).max()
    assert planned.tokens @ offered.weight / planned.step_ms == pytest.approx(best)


@given(offers(), step_tables())
def test_no_rows_within_the_same_total_and_caps_are_better_for_one_and_as_good_for_all(
    offered: Offers, table: StepTimeTable
) -> None:
    model = StepTimeModel(table)
    total = best_total(offered, model, rung=RUNG)
    _, planned = reached(offered, model)
    ways = all_rows(offered)
    others = tokens_of(offered, ways[ways.sum(axis=1) <= total])
    no_worse = (others >= planned.tokens - NEAR).all(axis=1)
    assert not (no_worse & (others > planned.tokens + NEAR).any(axis=1)).any()


@settings(max_examples=300)
@given(offers(), step_tables(), st.integers(0, 4), st.sampled_from([1.5, 2.0, 4.0, 50.0]))
def test_a_raised_weight_never_lowers_the_rate_of_its_request(
    offered: Offers, table: StepTimeTable, which: int, factor: float
) -> None:
    slot, model = which % len(offered.weight), StepTimeModel(table)
    raised = offered.weight.copy()
    raised[slot] *= factor
    _, before = reached(offered, model)
    _, after = reached(Offers(offered.survival, offered.most_rows, raised), model)
    assert after.rates_tok_s[slot] >= before.rates_tok_s[slot] * (1 - NEAR)


def test_a_raised_weight_may_lower_the_rows_of_its_request() -> None:
    """What is promised is a rate: here a step of 3 rows takes 10 ms, one of 4 to 6 takes 13."""
    table = reference_table("avx2").model_copy(
        update={
            "base_ms": 10.0,
            "per_requests_ms": ((1, 0.0),),
            "per_rows_ms": ((3, 0.0), (4, 3.0), (6, 3.0)),
            "draft_ms": {RUNG: ((1, 0.0),)},
        }
    )
    survival, caps = np.array([[0.5, 0.3], [1.0, 1.0]]), np.array([3, 3])
    low, high = (Offers(survival, caps, np.array([weight, 1.0])) for weight in (0.1, 50.0))
    (rows, before), (later_rows, after) = (reached(offered, StepTimeModel(table)) for offered in (low, high))
    assert rows.tolist() == [3, 3]
    assert later_rows.tolist() == [2, 1]
    assert after.rates_tok_s[0] > before.rates_tok_s[0]


@given(offers(st.sampled_from([1.0, 1.25])), step_tables())
def test_throughput_is_at_least_the_blind_optimum_times_least_over_greatest_weight(
    offered: Offers, table: StepTimeTable
) -> None:
    model = StepTimeModel(table)
    _, planned = reached(offered, model)
    ways = all_rows(offered)
    blind = (tokens_of(offered, ways).sum(axis=1) / times_of(model, ways)).max()
    bound = offered.weight.min() / offered.weight.max()
    assert planned.tokens.sum() / planned.step_ms >= bound * blind * (1 - NEAR)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), step_tables())
def test_the_order_of_requests_changes_nothing(seed: int, requests: int, table: StepTimeTable) -> None:
    rng = np.random.default_rng(seed)
    offered = Offers(
        survival=np.cumprod(rng.uniform(0.2, 1.0, (requests, 4)), axis=1),
        most_rows=rng.integers(1, 7, requests),
        weight=rng.uniform(0.5, 7.0, requests),
    )
    order, model = rng.permutation(requests), StepTimeModel(table)
    mixed = Offers(offered.survival[order], offered.most_rows[order], offered.weight[order])
    rows, _ = reached(offered, model)
    assert reached(mixed, model)[0].tolist() == rows[order].tolist()
    assert reached(offered, model)[0].tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("total", "rows"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (6, [2, 2, 2]), (8, [3, 3, 2]), (9, [3, 3, 3]), (99, [3, 3, 3])]
)
def test_equals_get_rows_by_depth_then_by_slot(total: int, rows: list[int]) -> None:
    alike = Offers(np.ones((3, 2)), np.array([3, 3, 3]), np.ones(3))
    assert share_out(alike, total).tolist() == rows


@given(offers(), offers(), step_tables())
def test_the_total_ignores_what_was_drafted_in_this_step(one: Offers, other: Offers, table: StepTimeTable) -> None:
    """And with it every token of this block: survivals of drafted tokens are known after the draft alone."""
    model = StepTimeModel(table)
    requests = min(len(one.weight), len(other.weight))
    lagged = Offers(one.survival[:requests], one.most_rows[:requests], one.weight[:requests])
    total = best_total(lagged, model, rung=RUNG)
    for survival in (other.survival[:requests], np.ones((requests, 3))):
        live = Offers(survival, np.full(requests, 9), lagged.weight)
        rows = planned_rows(lagged, live, model, rung=RUNG)
        assert rows.tolist() == share_out(live, total).tolist()
        assert rows.sum() <= total
    plenty = Offers(np.ones((requests, 40)), np.full(requests, 41), lagged.weight)
    assert planned_rows(lagged, plenty, model, rung=RUNG).sum() == total


@given(offers(), st.integers(0, 30), st.integers(0, 4), st.integers(0, 3), st.floats(0.0, 1.0))
def test_a_node_is_admitted_whatever_lies_below_it(
    offered: Offers, total: int, which: int, depth: int, factor: float
) -> None:
    """The survival of a deeper node tells of the token drawn here, by which a draw may not be admitted (appendix A)."""
    slot, depth = which % len(offered.weight), depth % offered.survival.shape[1]
    changed = offered.survival.copy()
    changed[slot, depth + 1 :] *= factor
    before = share_out(offered, total)[slot]
    after = share_out(Offers(changed, offered.most_rows, offered.weight), total)[slot]
    # The rows down to `depth`: its anchor's and depth + 1 drafted ones.
    assert min(before, depth + 2) == min(after, depth + 2)


def test_no_requests_need_no_rows() -> None:
    nothing = Offers(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0))
    assert planned_rows(nothing, nothing, StepTimeModel(reference_table("amx")), rung=RUNG).tolist() == []


def test_a_rung_that_drafts_nothing_verifies_anchors_alone() -> None:
    off = Offers(np.zeros((3, 0)), np.ones(3, dtype=np.int64), np.ones(3))
    assert planned_rows(off, off, StepTimeModel(reference_table("amx")), rung=0).tolist() == [1, 1, 1]
