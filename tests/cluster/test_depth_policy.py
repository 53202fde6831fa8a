"""The depth policy: replayed it gives the same bytes, it moves a rung once a hold time, and doubt raises nothing."""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest

from sparktier.cluster.depth_policy import EVALUATIONS_PER_TICK, Outcome, decide
from sparktier.cluster.policy.judgement import Judge
from sparktier.cluster.policy.policy_types import PolicyConfig, PolicyState, Received, ReplicaInputs
from sparktier.cluster.policy.replica_policy import decide_replica, depth_of
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.contracts.decision import Decision
from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.signals import Signals
from sparktier.configs.step_times import reference_table
from support.steering.signal_maker import STANDARD, STRICT, policy_config, received, signals

TICK_MS, START_MS, DAY_MS = 1000, 50_000, 1_795_824_000_000
TIMES = StepTimeModel(reference_table("avx2"))
NAME = "replica-0"
START = PolicyState(epoch=2)
CHAINS = {0: 0, 1: 2, 2: 5}
"""Rungs without trees, whose drafts cost this table less the more users there are."""
Say = Callable[[int], Received]


def ticks(
    say: Callable[[int], Mapping[str, Received]],
    count: int,
    *,
    config: PolicyConfig | None = None,
    times: StepTimeModel | None = TIMES,
) -> Iterator[Outcome]:
    """What the policy decides in `count` ticks of which `say` tells what was received."""
    state = START
    for number in range(count):
        got = say(number)
        models = {} if times is None else dict.fromkeys(got, times)
        now_ms, at_ms = START_MS + number * TICK_MS, DAY_MS + number * TICK_MS
        outcome = decide(got, config or policy_config(), models, state, now_ms=now_ms, at_ms=at_ms)
        state = outcome.state
        yield outcome


def one(say: Say, count: int, **options: Any) -> list[Outcome]:
    return list(ticks(lambda number: {NAME: say(number)}, count, **options))


def heard(number: int, running: Mapping[int, int], **changes: Any) -> Received:
    at_ms = changes.pop("at_ms", DAY_MS + number * TICK_MS)
    return received(signals(seq=number + 1, at_ms=at_ms, running=running, **changes))


def rungs(outcomes: list[Outcome]) -> list[int]:
    return [outcome.plan.replicas[0].rung for outcome in outcomes if outcome.plan.replicas]


def caps(outcome: Outcome) -> dict[int, int | None]:
    return {tier: bounds.cap_users for tier, bounds in outcome.plan.replicas[0].tiers.items()}


def moves(found: list[int]) -> list[int]:
    return [place for place in range(1, len(found)) if found[place] != found[place - 1]]


def test_few_users_are_drafted_deep_and_many_not_at_all() -> None:
    chains = policy_config(drafted=CHAINS)
    few = one(lambda number: heard(number, {STANDARD: 2}), 20, config=chains)
    hard = {"accept_by_position": {STANDARD: [0.2] * 5}}
    many = one(lambda number: heard(number, {STANDARD: 16}, **hard), 20, config=chains)
    assert rungs(few)[-1] == 2
    assert rungs(many)[-1] == 0


def test_a_tree_goes_on_where_it_yields_more_and_a_chain_where_it_is_good() -> None:
    """Users on a replica that does as it is told: what it drafts is what the plan before said."""

    def last_rung(first: int, *, chain: float, tree: float) -> int:
        rung, state = first, START
        for number in range(40):
            accept = {STANDARD: [tree if rung == 3 else chain] * 5}
            got = {NAME: heard(number, {STANDARD: 2}, rung=rung, accept_by_position=accept)}
            now_ms, at_ms = START_MS + number * TICK_MS, DAY_MS + number * TICK_MS
            outcome = decide(got, policy_config(), {NAME: TIMES}, state, now_ms=now_ms, at_ms=at_ms)
            state, rung = outcome.state, outcome.plan.replicas[0].rung
        return rung

    assert last_rung(3, chain=0.5, tree=0.8) == 3
    assert last_rung(2, chain=0.85, tree=0.5) == 2


def test_the_same_log_gives_the_same_bytes() -> None:
    def said(number: int) -> dict[str, Received]:
        rng = random.Random(number)
        return {
            f"replica-{place}": received(
                signals(
                    f"replica-{place}",
                    seq=number + 1,
                    at_ms=DAY_MS + number * TICK_MS,
                    running={STANDARD: rng.randrange(12), STRICT: rng.randrange(4)},
                    accept_by_position={STANDARD: [rng.random() for _ in range(5)]},
                )
            )
            for place in rng.sample(range(4), 4)
        }

    def written() -> list[str]:
        return [
            outcome.plan.model_dump_json() + "".join(each.model_dump_json() for each in outcome.decisions)
            for outcome in ticks(said, 60)
        ]

    assert written() == written()


@pytest.mark.parametrize("period", [1, 7, 16])
def test_a_square_wave_moves_a_rung_once_a_hold_time_at_most(period: int) -> None:
    def said(number: int) -> Received:
        busy = number // period % 2
        return heard(number, {STANDARD: 16 if busy else 1}, accept_by_position={STANDARD: [0.45] * 5})

    found = rungs(one(said, 150, config=policy_config(drafted=CHAINS, probe_every_ms=10**9)))
    at = moves(found)
    assert at, "the wave goes over the threshold"
    assert all(later - earlier >= 15 for earlier, later in pairwise(at))


@pytest.mark.parametrize("seed", range(3))
def test_a_random_walk_moves_a_rung_once_a_hold_time_at_most(seed: int) -> None:
    rng, users, accept = random.Random(seed), 6, 0.4

    def said(number: int) -> Received:
        nonlocal users, accept
        users = min(16, max(1, users + rng.choice((-1, 0, 1))))
        accept = min(0.9, max(0.1, accept + rng.uniform(-0.05, 0.05)))
        return heard(number, {STANDARD: users}, accept_by_position={STANDARD: [accept] * 5})

    found = rungs(one(said, 200, config=policy_config(drafted=CHAINS, probe_every_ms=10**9)))
    at = moves(found)
    assert all(later - earlier >= 15 for earlier, later in pairwise(at))


def test_a_probe_out_of_off_takes_one_tick_in_a_hundred_at_most() -> None:
    def said(number: int) -> Received:
        return heard(number, {STANDARD: 16}, rung=0, accept_by_position={STANDARD: [0.1] * 5})

    found = rungs(one(said, 401, config=policy_config(drafted=CHAINS)))
    assert 3 <= sum(found) <= 4
    assert set(found) == {0, 1}
    assert all(found[place + 1] == 0 for place in moves(found) if found[place] == 1 and place + 1 < len(found))


def test_nothing_is_probed_where_none_runs() -> None:
    assert set(rungs(one(lambda number: heard(number, {}, rung=0), 150))) == {0}


def nan_signals(number: int, **fields: Any) -> Received:
    """Signals that could not have come as JSON, with fields as they are."""
    good = heard(number, {STANDARD: 1}).signals
    assert good is not None
    return Received.model_construct(signals=good.model_copy(update=fields), age_ms=0, url="http://x:1", asked="serving")


DOUBTFUL: dict[str, Callable[[int], Received]] = {
    "frozen": lambda number: received(signals(seq=30, at_ms=DAY_MS, running={STANDARD: 1})),
    "none came": lambda number: received(None),
    "old": lambda number: received(heard(number, {STANDARD: 1}).signals, age_ms=5001),
    "dated ahead": lambda number: heard(number, {STANDARD: 1}, at_ms=DAY_MS + number * TICK_MS + 60_001),
    "NaN": lambda number: nan_signals(number, prefill_frac=math.nan),
    "NaN acceptance": lambda number: nan_signals(number, accept_by_position={0: (math.nan,) * 5}),
    "negative": lambda number: nan_signals(number, max_running=-3),
    "negative step": lambda number: nan_signals(number, step_ms={2: -1.0}),
    "more than all": lambda number: nan_signals(number, prefill_frac=1.5),
    "no ranks": lambda number: nan_signals(number, ranks=()),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_doubtful_signals_raise_neither_rung_nor_caps(kind: str) -> None:
    """After a crowd that takes the rung down, signals of one lone user would raise both if they were believed."""

    def crowd(number: int) -> Received:
        return heard(number, {STANDARD: 14, STRICT: 2}, accept_by_position={0: [0.2] * 5}, step_ms={2: 600.0})

    def said(doubtful: Say) -> Say:
        return lambda number: crowd(number) if number < 30 else doubtful(number)

    config = policy_config(drafted=CHAINS)
    lone = said(lambda number: heard(number, {STANDARD: 1}, accept_by_position={0: [0.9] * 5}))
    believed = one(lone, 60, config=config)
    found = one(said(DOUBTFUL[kind]), 60, config=config)
    before = found[29]
    assert rungs(found)[29] < rungs(believed)[-1], "the crowd takes the rung down"
    for outcome in found[31:] if kind == "frozen" else found[30:]:
        assert outcome.plan.replicas[0].rung <= before.plan.replicas[0].rung
        for tier, cap in caps(outcome).items():
            assert cap is not None
            assert cap <= (caps(before)[tier] or 0)


def test_a_replica_that_was_never_believed_is_in_no_plan() -> None:
    assert all(not outcome.plan.replicas for outcome in one(lambda number: received(None), 3))


@pytest.mark.parametrize(
    "latch", [{"latched": True}, {"canary": {"state": "alarmed", "scored_tokens": 9, "alarms": 1}}]
)
def test_a_latch_and_an_alarm_take_a_replica_off_at_once(latch: dict[str, Any]) -> None:
    def said(number: int) -> Received:
        return heard(number, {STANDARD: 1}, **(latch if number >= 3 else {}))

    found = one(said, 6)
    assert rungs(found) == [2, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("times", [TIMES, None], ids=["table", "no table"])
@pytest.mark.parametrize(("held", "found"), [(0, 0), (1, 1), (3, 3), (9, 3)])
def test_an_operator_holds_a_rung_with_a_reason_and_lets_it_go(
    held: int, found: int, times: StepTimeModel | None
) -> None:
    def said(number: int) -> Received:
        given = heard(number, {STANDARD: 1})
        ordered = {"held_rung": held, "order": "ann ordered to hold it"}
        return given.model_copy(update=ordered) if 3 <= number < 200 else given

    outcomes = one(said, 260, times=times)
    assert rungs(outcomes)[3:200] == [found] * 197, "no probe and no better rung ends it"
    assert rungs(outcomes)[-1] > 0, "what was let go drafts again"
    ordered = [decision.reason for outcome in outcomes[3:200] for decision in outcome.decisions]
    assert all(reason.startswith("ann ordered to hold it; ") for reason in ordered)
    assert ordered or rungs(outcomes)[2] == found


def test_a_latch_outranks_a_held_rung() -> None:
    held = {"held_rung": 3, "order": "ann ordered to hold it"}
    found = one(lambda number: heard(number, {STANDARD: 1}, latched=True).model_copy(update=held), 4)
    assert rungs(found) == [0] * 4


def test_without_step_times_the_rung_is_the_highest_and_caps_are_the_operators() -> None:
    config = policy_config()
    config = config.model_copy(
        update={"tiers": {**config.tiers, STRICT: config.tiers[STRICT].model_copy(update={"cap_users": 3})}}
    )
    found = one(lambda number: heard(number, {STANDARD: 16}, rung=1), 20, config=config, times=None)
    assert rungs(found) == [1] * 15 + [3] * 5
    assert all(caps(outcome) == {STANDARD: None, STRICT: 3} for outcome in found)
    assert "without step times" in found[0].decisions[0].reason
    assert all(outcome.evaluations == 0 for outcome in found)


def test_a_replica_that_is_to_drain_takes_none_and_is_off_when_it_is_empty() -> None:
    def said(number: int) -> Received:
        left = {STANDARD: 2} if number < 4 else {}
        asked = "serving" if number < 2 else "draining"
        return heard(number, left).model_copy(update={"asked": asked})

    found = one(said, 6)
    states = [outcome.plan.replicas[0].state for outcome in found]
    assert states == ["serving", "serving", "draining", "draining", "off", "off"]


def test_caps_fall_at_once_and_rise_once_a_hold_time_at_most() -> None:
    def said(number: int) -> Received:
        return heard(number, {STRICT: 2, STANDARD: 2}, drift_frac=1.6 if number // 4 % 2 else 1.0)

    found = [caps(outcome)[STRICT] or 0 for outcome in one(said, 80, config=policy_config(drafted=CHAINS))]
    rises = [place for place in moves(found) if found[place] > found[place - 1]]
    assert len(rises) >= 3
    assert all(later - earlier >= 15 for earlier, later in pairwise(rises))
    assert all(found[place] == min(found) < max(found) for place in range(80) if place // 4 % 2)


def test_a_tier_that_hard_text_shut_out_is_let_in_again_when_its_users_are_gone() -> None:
    def said(number: int) -> Received:
        accept = {STRICT: [0.05] * 5, STANDARD: [0.8] * 5}
        users = {STANDARD: 2} | ({STRICT: 2} if number < 10 else {})
        return heard(number, users, accept_by_position=accept)

    tiers = policy_config().tiers
    strict = tiers[STRICT].model_copy(update={"promise_tok_s": 8.0})
    config = policy_config(drafted={2: 5}, tiers={**tiers, STRICT: strict})
    found = [caps(outcome)[STRICT] for outcome in one(said, 40, config=config)]
    assert found[9] == 0
    assert (found[-1] or 0) > 0


def test_a_promise_that_typical_text_just_keeps_lets_some_in_unless_caps_are_to_be_cautious() -> None:
    """On this table 22.75 tok/s is hardly less than the median user gets alone."""

    def strict_cap(caution_frac: float) -> int:
        tiers = policy_config().tiers
        strict = tiers[STRICT].model_copy(update={"promise_tok_s": 22.75})
        config = policy_config(drafted={2: 5}, tiers={**tiers, STRICT: strict}, caution_frac=caution_frac)
        accept = {STRICT: [0.8] * 5, STANDARD: [0.8] * 5}
        said = one(lambda number: heard(number, {STANDARD: 1, STRICT: 1}, accept_by_position=accept), 2, config=config)
        return caps(said[-1])[STRICT] or 0

    assert strict_cap(0.0) > 0
    assert strict_cap(0.1) == 0


def test_users_of_a_tier_that_is_not_known_count_as_the_default_tiers() -> None:
    unknown = one(lambda number: heard(number, {9: 12}), 3)
    default = one(lambda number: heard(number, {STANDARD: 12}), 3)
    assert rungs(unknown) == rungs(default)
    assert set(caps(unknown[-1])) == {STANDARD, STRICT}


def test_tiers_with_a_promise_are_light_and_others_packed() -> None:
    def said(number: int) -> dict[str, Received]:
        return {
            f"replica-{place}": received(
                signals(
                    f"replica-{place}",
                    seq=number + 1,
                    at_ms=DAY_MS + number * TICK_MS,
                    running={STANDARD: 4, STRICT: 1},
                )
            )
            for place in range(4)
        }

    *_, last = ticks(said, 30)
    found = [replica.tiers for replica in last.plan.replicas]
    assert [tiers[STANDARD].cap_users for tiers in found[2:]] == [16, 16]
    assert all((tiers[STRICT].cap_users or 0) > (found[3][STRICT].cap_users or 0) for tiers in found[:2])


def cluster(replicas: int, number: int) -> dict[str, Received]:
    rng = random.Random(number)
    return {
        f"replica-{place}": received(
            signals(
                f"replica-{place}",
                seq=number + 1,
                at_ms=DAY_MS + number * TICK_MS,
                running={tier: rng.randrange(4) for tier in range(4)},
                accept_by_position={tier: [rng.random() for _ in range(5)] for tier in range(4)},
            )
        )
        for place in range(replicas)
    }


def four_tiers() -> PolicyConfig:
    config = policy_config()
    strict = config.tiers[STRICT]
    more = {2: {"name": "fast", "promise_tok_s": 9.0}, 3: {"name": "flex"}}
    tiers = {tier: strict.model_copy(update={"promise_tok_s": None, **fields}) for tier, fields in more.items()}
    return config.model_copy(update={"tiers": {**config.tiers, **tiers}})


def test_a_thousand_replicas_ask_the_planner_a_bounded_number_of_questions() -> None:
    outcomes = list(ticks(lambda number: cluster(1000, number), 2, config=four_tiers()))
    for outcome in outcomes:
        assert 0 < outcome.evaluations <= EVALUATIONS_PER_TICK
        assert len(outcome.plan.replicas) == 1000
    first, second = ({name for name, memory in outcome.state.replicas.items() if memory.caps} for outcome in outcomes)
    assert first < second, "those that were left out come first in the next tick"


def test_a_decision_can_be_made_again_from_its_log() -> None:
    config = four_tiers()
    logged = [
        each.model_dump_json()
        for outcome in ticks(lambda n: cluster(4, n), 25, config=config)
        for each in outcome.decisions
    ]
    assert len(logged) > 8
    again = PolicyConfig.model_validate_json(config.model_dump_json())
    for line in logged:
        decision = read_message(Decision, line)
        inputs = ReplicaInputs.model_validate_json(json.dumps(decision.inputs))
        found = decide_replica(inputs, again, TIMES, Judge(again, left=10_000))
        assert found is not None
        assert depth_of(found.plan) == decision.after
        assert found.reason == decision.reason


def test_what_is_decided_has_its_reason_in_words() -> None:
    for outcome in one(lambda number: heard(number, {STANDARD: 16}, accept_by_position={0: [0.2] * 5}), 20):
        for decision in outcome.decisions:
            assert decision.reason != "as before"
            assert Signals.model_validate_json(json.dumps(decision.inputs["received"]["signals"]))
