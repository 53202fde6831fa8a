"""Which mixes of users keep their promises: every smaller one does too, and boxes are as large as can be."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.cluster.arrays import Floats
from sparktier.cluster.feasibility import (
    Region,
    ReplicaFacts,
    TierTarget,
    TierText,
    box_of,
    chance_kept,
    most_evaluations,
)
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, PaceRules, best_total, expected, share_out, weights
from sparktier.configs.step_times import StepTimeTable, reference_table
from support.step_tables import curves, key

RULES = PaceRules()
NODES, RUNG = 5, 2


def survivals(chance: float, nodes: int = NODES) -> Floats:
    return np.cumprod(np.full(nodes, chance))


@st.composite
def tables(draw: st.DrawFn) -> StepTimeTable:
    buckets = draw(st.sets(st.integers(1, 60), max_size=5))
    return StepTimeTable(
        key=key(tuple(sorted(buckets))),
        source="drawn",
        base_ms=draw(st.sampled_from([0.5, 5.0, 40.0])),
        per_requests_ms=draw(curves(16, (0.0, 0.5, 2.0, 8.0))),
        per_rows_ms=draw(curves(60, (0.0, 1.0, 4.0, 20.0))),
        draft_ms={0: ((1, 0.0),), RUNG: draw(curves(16, (0.0, 0.5, 2.0)))},
        per_context_ms=draw(st.sampled_from([0.0, 0.25])),
        prefill_ms=draw(curves(60, (0.0, 1.0, 4.0, 20.0))),
        error_frac_p50=None,
        error_frac_p90=None,
    )


Drawn = tuple[ReplicaFacts, dict[int, TierTarget], dict[int, int], float]


@st.composite
def scenes(draw: st.DrawFn) -> Drawn:
    """Draw a replica, tiers, the users that are wanted, and a margin."""
    tiers = sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=4)))
    table = draw(tables())
    texts = {
        tier: TierText(survivals(high := draw(st.floats(0.0, 1.0))), survivals(high * draw(st.floats(0.3, 1.0))))
        for tier in tiers
    }
    targets = {
        tier: TierTarget(
            promise_tok_s=draw(st.none() | st.floats(1.0, 400.0)),
            weight=draw(st.sampled_from([0.5, 1.0, 4.0])),
            ttft_ms=draw(st.none() | st.integers(10, 2000)),
            max_stall_ms=draw(st.none() | st.integers(1, 200)),
            cap_tokens=draw(st.none() | st.integers(0, NODES)),
            most_users=draw(st.none() | st.integers(0, 12)),
        )
        for tier in tiers
    }
    facts = ReplicaFacts(
        times=StepTimeModel(table, draw(st.floats(0.25, 4.0))),
        rung=RUNG,
        texts=texts,
        most_users=draw(st.integers(1, 16)),
        kv_tokens=draw(st.none() | st.integers(64, 4096)),
        context_tokens=draw(st.integers(0, 1024)),
        prompt_tokens=draw(st.integers(0, 512)),
        prefill_frac=draw(st.floats(0.0, 1.0)),
        stall_ms=draw(st.floats(0.0, 100.0)),
    )
    return facts, targets, {tier: draw(st.integers(0, 8)) for tier in tiers}, draw(st.floats(0.0, 0.2))


@given(scenes(), st.data())
@settings(max_examples=100)
def test_more_users_never_make_a_mix_feasible(drawn: Drawn, data: st.DataObject) -> None:
    facts, targets, wanted, margin_frac = drawn
    region = Region(facts, targets, wanted, rules=RULES, margin_frac=margin_frac)
    mix = {tier: data.draw(st.integers(0, 8)) for tier in targets}
    more = mix | {(tier := data.draw(st.sampled_from(sorted(targets)))): mix[tier] + 1}
    assert region.feasible(mix) or not region.feasible(more)


def require_maximal(drawn: Drawn) -> None:
    facts, targets, wanted, margin_frac = drawn
    caps, _, region = box_of(facts, targets, wanted, rules=RULES, margin_frac=margin_frac)
    corners = [
        {tier: cap * bit for (tier, cap), bit in zip(caps.items(), bits, strict=True)} for bits in _bits(len(caps))
    ]
    assert all(region.feasible(corner) for corner in corners)
    for tier, cap in caps.items():
        assert not region.feasible(caps | {tier: cap + 1})
    assert region.evaluations <= most_evaluations(facts.most_users)


@given(scenes())
@settings(max_examples=100)
def test_every_corner_of_a_box_is_feasible_and_no_cap_can_be_raised(drawn: Drawn) -> None:
    require_maximal(drawn)


@pytest.mark.prove
@given(scenes())
@settings(max_examples=1000)
def test_the_same_for_a_thousand_tables(drawn: Drawn) -> None:
    require_maximal(drawn)


@given(st.floats(0.2, 5.0), st.floats(0.01, 0.9))
def test_chances_are_those_of_normal_speeds_down_to_one_in_two(speed: float, spread_frac: float) -> None:
    """The promise is 1; the user at the 5th percentile is `spread_frac` slower than the median."""
    sigma = spread_frac * speed / -NormalDist().inv_cdf(0.05)
    exact = 1.0 - NormalDist(speed, sigma).cdf(1.0)
    found = float(chance_kept(np.array([speed]), np.array([spread_frac]))[0])
    assert abs(found - exact) < 1e-3 if found else exact < 0.5001


def test_a_speed_of_nothing_keeps_no_promise() -> None:
    assert chance_kept(np.array([0.0]), np.array([0.2])).tolist() == [0.0]


@given(scenes())
@settings(max_examples=100)
def test_of_users_along_those_wanted_most_keep_their_promise_in_the_box_with_most(drawn: Drawn) -> None:
    """Slow: without drafts every user gets a token a step, and each user's chance is added up by itself."""
    facts, targets, wanted, margin_frac = drawn
    undrafted = {
        tier: replace(text, survival=np.zeros(1), hard_survival=np.zeros(1)) for tier, text in facts.texts.items()
    }
    facts = replace(facts, rung=0, texts=undrafted)
    region = Region(facts, targets, wanted, rules=RULES, margin_frac=margin_frac)

    def kept(mix: dict[int, int]) -> float:
        total = sum(mix.values())
        if not total:
            return 0.0
        context_tokens = total * facts.context_tokens
        step_ms = float(
            facts.times.step_ms(rung=0, requests=total, rows=np.array([total]), context_tokens=context_tokens)[0]
        )
        first_ms = step_ms + facts.times.prefill_ms(facts.prompt_tokens) / max(1.0 - facts.prefill_frac, 1e-3)
        if any((ttft_ms := targets[tier].ttft_ms) is not None and first_ms > ttft_ms for tier in mix if mix[tier]):
            return 0.0
        speed, sum_kept = 1000.0 * (1.0 - facts.prefill_frac) / step_ms, 0.0
        for tier, count in mix.items():
            if (promise := targets[tier].promise_tok_s) is not None and speed > 0:
                sigma = facts.texts[tier].spread_frac * speed / -NormalDist().inv_cdf(0.05)
                chance = 1.0 - NormalDist(speed, sigma).cdf(promise)
                sum_kept += count * (chance if chance >= 0.5 else 0.0)
        return sum_kept

    box = region.most_kept_box(wanted)
    assert math.isclose(region.kept_users(box), kept(box), abs_tol=0.02)
    for users in range(1, facts.most_users + 1):
        mix = region.along(wanted, users)
        if not region.has_room(mix):
            break
        assert kept(mix) <= kept(box) + 0.02


@given(scenes())
@settings(max_examples=100)
def test_a_box_is_given_up_only_for_one_in_which_more_of_the_same_users_keep_their_promise(drawn: Drawn) -> None:
    facts, targets, wanted, margin_frac = drawn
    plain = box_of(facts, targets, wanted, rules=RULES, margin_frac=margin_frac)
    found = box_of(facts, targets, wanted, rules=RULES, margin_frac=margin_frac, most_kept=True)
    let_in = {tier: min(cap, plain.caps[tier]) for tier, cap in found.caps.items()}
    assert found.caps == plain.caps or plain.region.kept_users(found.caps) > plain.region.kept_users(let_in)
    assert found.region.evaluations <= most_evaluations(facts.most_users)


def _bits(tiers: int) -> list[tuple[int, ...]]:
    return [tuple(number >> place & 1 for place in range(tiers)) for number in range(2**tiers)]


def facts_of(table: str, *, most_users: int, chance: float = 0.7, tiers: int = 2) -> ReplicaFacts:
    text = TierText(survivals(chance), survivals(0.8 * chance))
    return ReplicaFacts(
        times=StepTimeModel(reference_table(table)),
        rung=RUNG,
        texts=dict.fromkeys(range(tiers), text),
        most_users=most_users,
    )


def box_for(facts: ReplicaFacts, promise_tok_s: float, **strict: float) -> dict[int, int]:
    targets = {0: TierTarget(), 1: TierTarget(promise_tok_s=promise_tok_s, **strict)}
    return box_of(facts, targets, {0: 3, 1: 1}, rules=RULES, margin_frac=0.05).caps


def test_a_promise_bounds_its_neighbours_too() -> None:
    free = box_for(facts_of("avx2", most_users=16), 1.0)
    tight = box_for(facts_of("avx2", most_users=16), 8.0)
    assert free == {0: 12, 1: 4}
    assert 0 < tight[1] < 4
    assert 0 < tight[0] < 12


def test_a_promise_just_below_what_the_typical_user_gets_lets_some_in() -> None:
    """Refusing all of them would miss all their promises; what most would not get is refused."""
    facts = facts_of("avx2", most_users=16, chance=0.9)
    targets = {0: TierTarget(), 1: TierTarget(promise_tok_s=1.0)}
    alone = replace(targets[1], promise_tok_s=0.999 * _fastest(facts))

    def box(promise: TierTarget, most_kept: bool) -> dict[int, int]:
        tiers = {**targets, 1: promise}
        return box_of(facts, tiers, {0: 3, 1: 1}, rules=RULES, margin_frac=0.05, most_kept=most_kept).caps

    assert box(alone, most_kept=False) == {0: 16, 1: 0}
    taken = box(alone, most_kept=True)
    assert taken[1] > 0
    hopeless = replace(alone, promise_tok_s=2.0 * _fastest(facts))
    assert box(hopeless, most_kept=True) == box(hopeless, most_kept=False)
    easy = replace(alone, promise_tok_s=0.1 * _fastest(facts))
    assert box(easy, most_kept=True) == box(easy, most_kept=False)


def _fastest(facts: ReplicaFacts) -> float:
    """What one typical user of tier 1 alone gets at most, by trying promises."""
    low, high = 0.0, 1000.0
    for _ in range(40):
        promise = 0.5 * (low + high)
        targets = {1: TierTarget(promise_tok_s=promise)}
        region = Region(facts, targets, {1: 1}, rules=RULES, margin_frac=0.0)
        low, high = (promise, high) if region.rows_of({1: 1}) is not None else (low, promise)
    return low


def test_what_none_could_get_has_no_room_and_takes_none_from_others() -> None:
    assert box_for(facts_of("avx2", most_users=16), 500.0) == {0: 16, 1: 0}


@pytest.mark.parametrize(
    ("change", "box"),
    [
        ({"kv_tokens": 1000, "context_tokens": 250}, {0: 3, 1: 1}),
        ({"prefill_frac": 0.9}, {0: 16, 1: 0}),
        ({"prompt_tokens": 10_000}, {0: 16, 1: 0}),
        # Alone it has no neighbour that could hold it up.
        ({"stall_ms": 90.0}, {0: 16, 1: 0}),
    ],
    ids=["KV cache", "prefill share", "first token", "longest stall"],
)
def test_what_else_bounds_a_box(change: dict[str, float], box: dict[int, int]) -> None:
    facts = replace(facts_of("avx2", most_users=16), **change)
    assert box_for(facts, 2.0, ttft_ms=5000, max_stall_ms=80) == box


def test_text_that_is_harder_to_draft_leaves_less_room() -> None:
    rooms = [sum(box_for(facts_of("avx2", most_users=16, chance=chance), 5.0).values()) for chance in (0.9, 0.7, 0.3)]
    assert rooms == sorted(rooms, reverse=True)
    assert rooms[0] > rooms[-1]


def test_the_planner_keeps_promises_inside_a_box() -> None:
    """Fluid users at the corner of the box, whose weights follow what they are behind, for 2,000 modelled steps."""
    for table, promise in (("avx2", 6.0), ("amx", 14.0), ("production", 60.0)):
        facts = facts_of(table, most_users=64 if table == "production" else 16)
        box = box_for(facts, promise)
        assert box[1] > 0, table
        hard = -(-box[1] // 20)
        survival = np.array(
            [facts.texts[0].survival] * box[0]
            + [facts.texts[1].survival] * (box[1] - hard)
            + [facts.texts[1].hard_survival] * hard
        )
        promises = np.array([0.0] * box[0] + [promise] * box[1])
        tokens, elapsed_s = np.ones(len(survival)), 0.0
        for _ in range(2000):
            weight = weights(
                tier_weight=np.ones(len(survival)),
                promise_tok_s=promises,
                since_first_s=np.full(len(survival), elapsed_s),
                delivered_tokens=tokens.astype(np.int64),
                rules=RULES,
            )
            offers = Offers(survival, np.full(len(survival), NODES + 1), weight)
            rows = share_out(offers, best_total(offers, facts.times, rung=RUNG))
            step = expected(offers, rows, facts.times, rung=RUNG)
            tokens, elapsed_s = tokens + step.tokens, elapsed_s + step.step_ms / 1000
        speeds = (tokens - 1) / elapsed_s
        # Where weights settle, a promise is kept but for what the last few steps moved.
        assert np.all(speeds >= 0.995 * promises), (table, speeds.min())
