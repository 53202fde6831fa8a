"""What a replica tells of itself while it works: signals of all its ranks, metrics, usage, spans of its steps."""

import concurrent.futures
import time
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sparktier.configs.contracts.signals import RankLoad, Signals
from support import replica_http
from support.deployment import MODEL, THREE_TIERS, Deployment, wait_until, write_tiers
from support.generation import generate, generate_all, random_prompts, set_plan
from support.span_collector import SpanCollector

pytestmark = pytest.mark.engine
OFF, SHORT, CHAIN = 0, 1, 2
BLOCK = 5
STANDARD, GOLD, LONE = 0, 5, 7
AT_ONCE = 8  # max_running_requests of configs/test.yaml


@dataclass(frozen=True)
class Replica:
    """A deployment of one replica with two ranks and three tiers, and what collects its spans."""

    deployment: Deployment
    url: str
    collector: SpanCollector

    def signals(self) -> Signals:
        answer = replica_http.get(f"{self.url}/sparktier/signals", timeout=60.0)
        assert answer.status_code == 200, answer.text
        return Signals.model_validate_json(answer.content)

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        text = replica_http.get(f"{self.url}/metrics", timeout=60.0).text
        families = text_string_to_metric_families(text)
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics()[name, frozenset(labels.items())]

    def plan(self, **keys: int) -> None:
        before = self.signals().plan_version
        assert set_plan(self.url, {f"sparktier_{key}": value for key, value in keys.items()})
        # Signals that were just read are told again for a tenth of a second.
        wait_until(lambda: self.signals().plan_version > before, timeout_s=30.0, what=lambda: "the plan in signals")


@pytest.fixture(scope="module")
def replica(drafting: Deployment, collector: SpanCollector) -> Replica:
    return Replica(drafting, drafting.replica_url(), collector)


def custom(tier: int) -> dict[str, dict[str, int]]:
    return {"custom_params": {"sparktier_tier": tier}}


def test_the_plan_in_signals_is_the_one_that_ranks_run(replica: Replica) -> None:
    replica.plan(rung=SHORT, rows=12)
    found = replica.signals()
    version = found.plan_version
    assert (found.replica_id, found.epoch) == ("replica-0", 1)
    assert (found.rung, found.rows, found.expired, found.default_tier) == (SHORT, 12, False, STANDARD)
    assert set(found.shares) == {STANDARD, GOLD, LONE}
    assert abs(found.at_ms / 1000 - time.time()) < 60
    metrics = replica.metrics()
    for rank in ("0", "1"):
        assert metrics["sparktier_plan_version", frozenset({("tp_rank", rank)})] == version
        assert metrics["sparktier_rung", frozenset({("tp_rank", rank)})] == SHORT
    replica.plan(rung=CHAIN, rows=0)
    assert replica.signals().plan_version > version


def held(rank: RankLoad, *tiers: int) -> int:
    """How many requests of `tiers`, or of all, run or wait."""
    return sum(count for of in (rank.running, rank.queued) for tier, count in of.items() if not tiers or tier in tiers)


def test_requests_are_counted_where_they_are_and_by_tier(replica: Replica) -> None:
    replica.plan(rung=CHAIN, rows=0)
    before = replica.metric("sparktier_unknown_tier_requests_total", dp_rank="0")
    tiers = [GOLD] * 5 + [STANDARD] * 2 + [9] * 3 + [GOLD] * 4
    prompts = random_prompts(len(tiers), seed=1)
    seen: list[Signals] = []
    with concurrent.futures.ThreadPoolExecutor(len(tiers)) as pool:
        work = [
            pool.submit(generate, replica.url, p, tokens=160, **custom(t)) for p, t in zip(prompts, tiers, strict=True)
        ]
        while not all(done.done() for done in work):
            seen.append(replica.signals())
            time.sleep(0.2)
        answers = [done.result() for done in work]
    assert {len(answer.tokens) for answer in answers} == {160}
    assert max(sum(signals.ranks[0].running.values()) for signals in seen) == AT_ONCE
    everybody = [rank for signals in seen for rank in signals.ranks if held(rank) == len(tiers)]
    assert everybody
    # No request waits while a slot is free: until one ends, as many run as may.
    assert sum(everybody[-1].running.values()) == AT_ONCE
    for rank in everybody:
        assert held(rank, GOLD) == 9
        assert held(rank, STANDARD) == 5
        assert rank.kv_used_frac > 0
        assert rank.context_tokens_p50 > 2
    after = replica.signals().ranks[0]
    assert (after.running, after.queued, after.context_tokens_p50) == ({}, {}, 0)
    assert replica.metric("sparktier_unknown_tier_requests_total", dp_rank="0") == before + 3


def test_what_speculation_yields_is_told_by_tier_and_position(replica: Replica) -> None:
    replica.plan(rung=CHAIN, rows=0)
    before = replica.metrics()
    answers = generate_all(replica.url, random_prompts(6, seed=2), tokens=64, at_once=3, **custom(GOLD))
    rounds = sum(answer.meta["spec_verify_ct"] for answer in answers)
    tokens = sum(answer.meta["spec_num_correct_drafts"] for answer in answers) + rounds
    found, after = replica.signals(), replica.metrics()

    def grown(name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return after[key] - before.get(key, 0.0)

    gold = {"dp_rank": "0", "tier": str(GOLD)}
    assert grown("sparktier_rounds_total", **gold) == rounds
    assert grown("sparktier_round_tokens_total", **gold) == tokens
    assert grown("sparktier_rows_verified_total", **gold) > rounds
    acceptance = found.accept_by_position[GOLD]
    assert len(acceptance) == BLOCK
    assert acceptance[0] > 0.2
    for part in ("draft", "verify", "inject", "overhead"):
        assert grown("sparktier_decode_ms_total", dp_rank="0", part=part) > 0, part


def test_a_lone_user_s_speed_is_that_of_the_steps(replica: Replica) -> None:
    """All its time after the first token is decode steps, so both are the same time seen from two sides."""
    replica.plan(rung=CHAIN, rows=0)
    before = replica.metrics()
    tokens = 300
    answer = generate(replica.url, random_prompts(1, seed=3)[0], tokens=tokens, **custom(LONE))
    found, after = replica.signals(), replica.metrics()

    def grown(name: str) -> float:
        return sum(after[key] - before.get(key, 0.0) for key in after if key[0] == name)

    decode_s = grown("sparktier_decode_ms_total") / 1000
    steps = grown("sparktier_decode_steps_total")
    assert steps == answer.meta["spec_verify_ct"]
    speed = found.tok_s_per_user[LONE]
    assert speed.p5 == speed.p50 == pytest.approx((tokens - 1) / decode_s, rel=0.02)
    assert after["sparktier_user_tok_s", frozenset({("dp_rank", "0"), ("tier", str(LONE)), ("quantile", "0.5")})] > 0
    assert set(found.step_ms) >= {CHAIN}
    assert 0 < found.prefill_frac < 1


def test_usage_tells_what_speculation_did(replica: Replica) -> None:
    replica.plan(rung=CHAIN, rows=0)
    client = replica.deployment.client()
    asked = {
        "model": MODEL,
        "prompt": "ba be bi",
        "max_tokens": 48,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.completions.create(**asked).usage
    assert whole is not None
    told = whole.model_dump()["sparktier"]
    assert told.pop("attained_tok_s") > 0
    assert told.pop("ttft_ms") > 0
    assert set(told) == {"tier", "accepted_length", "rounds", "rows_verified"}
    assert told["tier"] == "standard"
    assert told["accepted_length"] > 1
    assert told["rounds"] < 48
    assert told["rows_verified"] > told["rounds"]
    events = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert events[-1].usage is not None
    streamed = events[-1].usage.model_dump()["sparktier"]
    assert streamed.pop("attained_tok_s") > 0
    assert streamed.pop("ttft_ms") > 0
    assert streamed == told
    assert all(event.choices for event in events[:-1])
    assert all(event.choices for event in client.completions.create(**asked, stream=True))
    replica.plan(rung=OFF)
    off = client.completions.create(**asked).usage
    assert off is not None
    told = off.model_dump()["sparktier"]
    assert told.pop("attained_tok_s") > 0
    assert told.pop("ttft_ms") > 0
    assert told == {
        "tier": "standard",
        "accepted_length": 1.0,
        "rounds": 47,
        "rows_verified": 47,
    }


def test_usage_of_a_chat_and_of_several_choices_is_the_sum(replica: Replica) -> None:
    replica.plan(rung=CHAIN, rows=0)
    client = replica.deployment.client()
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "ba"}], "max_tokens": 32, "temperature": 0}
    one = client.chat.completions.create(**asked, extra_body={"ignore_eos": True}).usage
    three = client.chat.completions.create(**asked, n=3, extra_body={"ignore_eos": True}).usage
    assert one is not None
    assert three is not None
    alone, summed = one.model_dump()["sparktier"], three.model_dump()["sparktier"]
    assert alone.pop("attained_tok_s") > 0
    assert alone.pop("ttft_ms") > 0
    assert summed["attained_tok_s"] > 0
    assert summed["rounds"] == 3 * alone["rounds"]
    assert summed["accepted_length"] == pytest.approx(alone["accepted_length"])
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True}
    )
    last = list(stream)[-1].usage
    assert last is not None
    streamed = last.model_dump()["sparktier"]
    assert streamed.pop("attained_tok_s") > 0
    assert streamed.pop("ttft_ms") > 0
    assert streamed == alone


def test_the_front_has_the_metrics_and_none_of_the_admin_routes(replica: Replica) -> None:
    text = httpx.get(f"{replica.deployment.internal_url}/metrics", timeout=60.0).text
    assert 'sparktier_rung{replica="0",tp_rank="1"}' in text
    # SGLang's own: of a rank, and of the process with the tokenizer.
    assert 'sglang:num_running_reqs{replica="0",' in text
    assert 'sglang:prompt_tokens_total{replica="0",' in text
    for path in ("/sparktier/signals", "/sparktier/ranks", "/sparktier/metrics", "/server_info", "/set_internal_state"):
        assert httpx.get(f"{replica.deployment.url}{path}", timeout=60.0).status_code == 404


def test_our_metrics_can_be_had_without_sglangs(replica: Replica) -> None:
    whole, ours = (
        {
            family.name
            for family in text_string_to_metric_families(replica_http.get(replica.url + path, timeout=60.0).text)
        }
        for path in ("/metrics", "/sparktier/metrics")
    )
    assert ours == {name for name in whole if name.startswith("sparktier_")} < whole
    assert "sparktier_decode_ms" in ours


def test_a_reload_of_tiers_reaches_both_ranks_without_a_restart_or_another_token(replica: Replica) -> None:
    """Signals are an error while ranks differ in anything they apply, so one answer speaks for both."""
    up, prompts = replica.deployment, random_prompts(3, seed=8)
    replica.plan(rung=CHAIN, rows=0)
    before, pids = replica.signals(), [rank["pid"] for rank in up.ranks()]
    tokens = [answer.tokens for answer in generate_all(replica.url, prompts, tokens=48, at_once=3, **custom(GOLD))]
    gold = {"name": "gold", "promise_tok_s": 120.0, "weight": 3.0}
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            during = pool.submit(generate_all, replica.url, prompts, tokens=48, at_once=3, **custom(GOLD))
            write_tiers(up.config, {**THREE_TIERS, GOLD: gold, 9: {"name": "late", "cap_tokens": 1}})
            told = up.reload("replica 0 has the tiers of the reload")
            assert [answer.tokens for answer in during.result()] == tokens
        assert "tier 5 (gold): promise_tok_s 40.0 -> 120.0" in told
        found = replica.signals()
        assert found.shares[GOLD].model_dump() == {"promise_tok_s": 120.0, "weight": 3.0, "cap_tokens": None}
        assert found.shares[9].cap_tokens == 1
        assert (found.rung, found.rows, found.epoch) == (before.rung, before.rows, 1)
        assert found.plan_version > before.plan_version
        after = generate_all(replica.url, prompts, tokens=48, at_once=3, **custom(9))
        assert [answer.tokens for answer in after] == tokens
        write_tiers(up.config, {**THREE_TIERS, GOLD: gold | {"name": "silver"}})
        told = up.reload("not reloaded")
        assert "tiers.5.name: must stay gold" in told
        up.config.write_text("tiers: {")
        up.reload("not reloaded")
        assert replica.signals().shares == found.shares
    finally:
        write_tiers(up.config, THREE_TIERS)
        up.reload("replica 0 has the tiers of the reload")
    undone = replica.signals()
    assert undone.shares == before.shares
    assert [rank["pid"] for rank in up.ranks()] == pids


def test_steps_send_spans(replica: Replica) -> None:
    generate(replica.url, [7, 8, 9], tokens=32)
    wait_until(lambda: bool(replica.collector.spans), timeout_s=30, what=lambda: "spans")
    steps = {span.span_id for span in replica.collector.spans if span.name == "decode"}
    verifies = [span for span in replica.collector.spans if span.name == "verify"]
    assert steps
    assert verifies
    assert all(span.parent_span_id in steps for span in verifies)
