"""Signals of a replica: one plan or none, a load an attention group, statistics summed, the slowest pace."""

import json
from dataclasses import replace
from typing import Any

import pytest

from sparktier.configs.contracts.signals import CanaryReport, Signals
from sparktier.configs.errors import ReplicaError
from sparktier.configs.plan_keys import Rung, TierTerms
from sparktier.serving.engine.telemetry.rank_state import RankState, dump, load
from sparktier.serving.engine.telemetry.signals import signals_of
from support.rank_states import PLAN, rank_state, stats_of


def signals(*states: RankState) -> Signals:
    return signals_of(states, replica_id="replica-3", seq=4, at_ms=99)


def test_one_rank_is_the_whole_replica() -> None:
    found = signals(rank_state())
    assert (found.replica_id, found.at_ms) == ("replica-3", 99)
    assert (found.epoch, found.plan_version, found.rung, found.rows) == (3, 7, 2, 12)
    assert (found.seq, found.plan_age_ms, found.expired, found.default_tier) == (4, 1500, False, 5)
    assert found.shares[5].model_dump() == {"promise_tok_s": 80.0, "cap_tokens": 4, "weight": 2.5}
    [rank] = found.ranks
    assert rank.model_dump() == {
        "dp_rank": 0,
        "running": {0: 3, 5: 1},
        "queued": {5: 2},
        "kv_used_frac": 0.25,
        "context_tokens_p50": 100,
    }
    assert found.step_ms == {0: 4.0, 2: 10.0}
    assert found.prefill_frac == 0.125
    assert found.accept_by_position == {0: (1.0, 0.5), 5: (0.0,)}
    assert found.tok_s_per_user[0].p50 == 20.0
    assert 10.0 < found.tok_s_per_user[0].p5 < 12.0
    assert found.tok_s_per_user[5].model_dump() == {"p5": 7.0, "p50": 7.0}
    assert (found.max_running, found.kv_tokens, found.prefill_ms_per_token) == (8, 4096, 1.5)
    assert (found.queue_age_ms, found.arrivals_s, found.met) == ({5: 250}, {0: 0.5, 5: 1.5}, {5: (3, 4)})
    assert found.accepted_tokens[0].p50 == 2.5
    assert (found.latched, found.drift_frac, found.predicted_tokens) == (False, 1.25, {})
    assert (found.canary.state, found.canary.scored_tokens, found.canary.alarms) == ("off", 0, 0)


def test_the_message_is_the_contract_s_own_json() -> None:
    found = signals(rank_state())
    assert Signals.model_validate_json(found.model_dump_json()) == found


def test_ranks_of_one_group_count_once() -> None:
    follower = rank_state(tp_rank=1, is_group_leader=False, running={0: 3, 5: 1})
    assert signals(follower, rank_state()) == signals(rank_state())


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 2},
        {"version": 6},
        {"ttl_ms": 9},
        {"rung": Rung.OFF},
        {"rows": 0},
        {"default_tier": 0},
        {"tiers": {}},
        {"tiers": {5: TierTerms(80.0, weight=2.5, cap_tokens=3)}},
        {"tiers": {5: TierTerms(None, weight=2.5, cap_tokens=4)}},
        {"tiers": {5: TierTerms(80.0, weight=1.0, cap_tokens=4)}},
    ],
    ids=str,
)
def test_ranks_that_run_different_plans_are_no_signals(change: dict[str, Any]) -> None:
    with pytest.raises(ReplicaError, match="one plan"):
        signals(rank_state(), rank_state(tp_rank=1, is_group_leader=False, plan=replace(PLAN, **change)))


def test_ranks_that_differ_in_whether_the_plan_is_over_are_no_signals() -> None:
    with pytest.raises(ReplicaError, match="'expired': True"):
        signals(rank_state(), rank_state(tp_rank=1, is_group_leader=False, expired=True))


def test_the_age_is_that_of_the_rank_that_took_the_plan_first() -> None:
    follower = rank_state(tp_rank=1, is_group_leader=False, plan_age_ms=1700)
    assert signals(rank_state(), follower).plan_age_ms == 1700
    assert signals(rank_state(plan_age_ms=None)).plan_age_ms is None


def test_groups_are_listed_and_what_they_did_is_joined() -> None:
    other = rank_state(
        tp_rank=1,
        dp_rank=1,
        running={0: 9},
        step_ms={0: 2.0, 2: 14.0, 3: 1.0},
        prefill_frac=0.5,
        speeds={0: [40.0, 50.0]},
        prefill_ms_per_token=None,
        queue_age_ms={5: 100, 9: 7},
        arrivals_s={5: 1.0},
        accepted_tokens={0: [4.0], 9: [1.0]},
        met={5: (1, 2), 9: (0, 1)},
        spec_stats=stats_of((0, 2, 0), (0, 2, 0), (9, 4, 4)),
    )
    found = signals(other, rank_state())
    assert [(rank.dp_rank, rank.running) for rank in found.ranks] == [(0, {0: 3, 5: 1}), (1, {0: 9})]
    assert found.step_ms == {0: 4.0, 2: 14.0, 3: 1.0}
    assert found.prefill_frac == 0.5
    assert found.accept_by_position == {0: (0.5, 0.5), 5: (0.0,), 9: (1.0, 1.0, 1.0, 1.0)}
    assert found.tok_s_per_user[0].p50 == 30.0
    assert (found.max_running, found.kv_tokens, found.prefill_ms_per_token) == (16, 8192, 1.5)
    assert found.queue_age_ms == {5: 250, 9: 7}
    assert found.arrivals_s == {0: 0.5, 5: 2.5}
    assert found.accepted_tokens[0].p50 == 3.0
    assert found.met == {5: (4, 6), 9: (0, 1)}


def test_a_replica_that_has_done_nothing_has_signals() -> None:
    fresh = rank_state(running={}, queued={}, step_ms={}, speeds={}, spec_stats=stats_of(), context_tokens_p50=0)
    assert json.loads(signals(fresh).model_dump_json())["accept_by_position"] == {}


def test_states_travel_as_they_are() -> None:
    states = [rank_state(), rank_state(tp_rank=1, is_group_leader=False)]
    assert load(dump(states)) == states


def test_a_latched_rank_latches_its_replica() -> None:
    found = signals(rank_state(latched="wrong tokens"))
    assert (found.latched, found.latch_cause) == (True, "wrong tokens")


def test_the_canaries_of_all_groups_count_together_and_the_worst_state_wins() -> None:
    one = CanaryReport(state="watching", scored_tokens=100, alarms=0, far_tokens=1, steps=900, level_frac=0.5)
    two = CanaryReport(state="alarmed", scored_tokens=50, alarms=1, far_tokens=9, steps=800, acceptance="high")
    found = signals(rank_state(canary=one), rank_state(tp_rank=1, dp_rank=1, canary=two)).canary
    assert (found.state, found.acceptance, found.level_frac) == ("alarmed", "high", 0.5)
    assert (found.scored_tokens, found.alarms, found.far_tokens, found.steps) == (150, 1, 10, 1700)
