"""Trees and chains on a real engine change no token: any rung, switching, any sampling, two ranks against plain one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.signals import Signals
from support import replica_http
from support.deployment import Deployment
from support.generation import Answer, Switching, Tokens, generate, generate_all, random_prompts, set_plan
from support.inputs.dead_ends import assert_every_request_ends_alone
from support.inputs.random_requests import run_random_requests
from support.oracles.greedy import assert_same_greedy

pytestmark = pytest.mark.engine
OFF, SHORT, CHAIN, TREE = 0, 1, 2, 3
BLOCK = 5
TREE_ROWS = 12
CONTEXT = 8192
NO_BOUNDS = {"sparktier_rung": TREE, "sparktier_rows": 0, "sparktier_tier0_cap": TREE_ROWS}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a", "b"]}


@dataclass(frozen=True)
class Engines:
    """The same target decoded plainly by one rank, and with drafts by two."""

    plain: str
    drafting: str
    model: Path
    deployments: tuple[Deployment, Deployment]

    def plan(self, **keys: int) -> None:
        changed = {f"sparktier_{key}": value for key, value in keys.items()}
        assert set_plan(self.drafting, {**NO_BOUNDS, **changed})


@pytest.fixture(scope="module")
def engines(pair: Deployment, drafting: Deployment, predictable: Path) -> Engines:
    return Engines(pair.replica_url(), drafting.replica_url(), predictable, (pair, drafting))


def tokens_of(answers: list[Answer]) -> list[Tokens]:
    return [answer.tokens for answer in answers]


def accepted_length(answers: list[Answer]) -> float:
    """Tokens per verify pass, the bonus token included."""
    return sum(a.meta["completion_tokens"] for a in answers) / sum(a.meta["spec_verify_ct"] for a in answers)


@pytest.mark.parametrize(
    ("count", "tokens"), [(10, 48), pytest.param(100, 128, marks=[pytest.mark.prove, pytest.mark.timeout(3600)])]
)
def test_every_rung_and_switching_between_them_gives_plain_greedy_tokens(
    engines: Engines, count: int, tokens: int
) -> None:
    prompts = random_prompts(count, seed=count)
    plain = tokens_of(generate_all(engines.plain, prompts, tokens=tokens, at_once=4))
    lengths = {}
    for rung in (TREE, CHAIN, SHORT, OFF):
        engines.plan(rung=rung)
        answers = generate_all(engines.drafting, prompts, tokens=tokens, at_once=8)
        assert_same_greedy(plain, tokens_of(answers), prompts, engines.model)
        lengths[rung] = accepted_length(answers)
    # Not an aim: proof that accepted, rejected and undrafted rows were all there.
    assert lengths[TREE] > lengths[CHAIN] > lengths[SHORT] > 1.2
    assert lengths[OFF] == pytest.approx(1.0, abs=0.05)
    choices = {"rung": (OFF, SHORT, CHAIN, TREE), "rows": (0, 3, 10, 40), "tier0_cap": (0, 1, 3, BLOCK, TREE_ROWS)}
    with Switching(engines.drafting, choices, seed=count, pause_s=0.1):
        answers = generate_all(engines.drafting, prompts, tokens=tokens, at_once=8)
    assert_same_greedy(plain, tokens_of(answers), prompts, engines.model)


def test_one_request_alone_is_what_it_is_in_a_batch(engines: Engines) -> None:
    prompts = random_prompts(4, seed=1)
    engines.plan()
    alone = tokens_of(generate_all(engines.drafting, prompts, tokens=32, at_once=1))
    together = tokens_of(generate_all(engines.drafting, prompts, tokens=32, at_once=4))
    assert_same_greedy(alone, together, prompts, engines.model)


def test_sampled_answers_are_those_of_plain_decoding_on_every_rung(engines: Engines) -> None:
    prompts = random_prompts(6, seed=2)
    params = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01}

    def sampled(url: str) -> list[Tokens]:
        return [generate(url, p, tokens=32, sampling_seed=1000 + i, **params).tokens for i, p in enumerate(prompts)]

    plain = sampled(engines.plain)
    for rung in (TREE, CHAIN, SHORT, OFF):
        engines.plan(rung=rung)
        assert sampled(engines.drafting) == plain
    assert sampled(engines.plain) == plain
    other = [generate(engines.plain, p, tokens=32, sampling_seed=i, **params).tokens for i, p in enumerate(prompts)]
    assert other != plain


CHANGES = {
    "frequency": {"frequency_penalty": 1.5},
    "presence": {"presence_penalty": 1.2},
    "repetition": {"repetition_penalty": 1.3},
    "least length": {"min_new_tokens": 20, "ignore_eos": False, "logit_bias": {"1": 8.0}},
    "bias": {"logit_bias": {"100": 9.0, "101": 8.0}},
    "stop string": {"stop": ["ba", "ku"]},
    "stop token": {"stop_token_ids": [414, 280, 100]},
    "regex": {"regex": "[a-f]{3,9}(xy)+z", "ignore_eos": False},
    "schema": {"json_schema": json.dumps(SCHEMA), "ignore_eos": False},
    "end inside a block": {"ignore_eos": False, "logit_bias": {"1": 6.0}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_target_s_distribution_changes_it_alike(engines: Engines, change: str) -> None:
    prompts = random_prompts(6, seed=3)
    plain = generate_all(engines.plain, prompts, tokens=40, at_once=3, **CHANGES[change])
    for rung in (TREE, CHAIN):
        engines.plan(rung=rung)
        drafted = generate_all(engines.drafting, prompts, tokens=40, at_once=6, **CHANGES[change])
        assert tokens_of(drafted) == tokens_of(plain)
        assert [a.meta["finish_reason"] for a in drafted] == [a.meta["finish_reason"] for a in plain]


def test_a_change_that_is_ignored_would_be_seen(engines: Engines) -> None:
    prompts = random_prompts(6, seed=3)
    free = tokens_of(generate_all(engines.plain, prompts, tokens=40, at_once=3))
    for change in ("frequency", "presence", "repetition", "bias", "least length", "regex", "schema"):
        assert tokens_of(generate_all(engines.plain, prompts, tokens=40, at_once=3, **CHANGES[change])) != free, change


def test_logprobs_are_those_of_plain_decoding(engines: Engines) -> None:
    [prompt] = random_prompts(1, seed=4)
    engines.plan()

    def logprobs(url: str) -> list[tuple[float, int]]:
        body = {"input_ids": prompt, "return_logprob": True, "top_logprobs_num": 3}
        params = {"max_new_tokens": 24, "temperature": 0, "ignore_eos": True}
        answer = replica_http.post(f"{url}/generate", json=body | {"sampling_params": params}, timeout=300.0).json()
        return [(value, token) for value, token, _ in answer["meta_info"]["output_token_logprobs"]]

    plain, chains = logprobs(engines.plain), logprobs(engines.drafting)
    assert [token for _, token in chains] == [token for _, token in plain]
    assert [value for value, _ in chains] == pytest.approx([value for value, _ in plain], abs=1e-4)


def test_long_prompts_in_chunks_and_shared_prefixes(engines: Engines) -> None:
    long = [token for prompt in random_prompts(80, seed=5) for token in prompt][:1500]
    prompts = [long, [*long, 7, 8, 9], long[:700], long]
    plain = tokens_of(generate_all(engines.plain, prompts, tokens=24, at_once=1))
    engines.plan()
    chains = generate_all(engines.drafting, prompts, tokens=24, at_once=1)
    assert_same_greedy(plain, tokens_of(chains), prompts, engines.model)
    assert any(answer.meta["cached_tokens"] > 0 for answer in chains)


def test_a_context_that_is_full_beside_short_ones(engines: Engines) -> None:
    """The long answer ends where the context does, in the middle of what was drafted."""
    full = [token for prompt in random_prompts(400, seed=8) for token in prompt][: CONTEXT - 41]
    prompts = [full, *random_prompts(3, seed=9)]
    plain = tokens_of(generate_all(engines.plain, prompts, tokens=40, at_once=4))
    for rung in (TREE, CHAIN):
        engines.plan(rung=rung)
        answers = generate_all(engines.drafting, prompts, tokens=40, at_once=4)
        assert_same_greedy(plain, tokens_of(answers), prompts, engines.model)


def test_acceptance_comes_back_after_a_spell_without_drafts(engines: Engines) -> None:
    """A hole in the draft's context would not show in tokens, only in what is accepted afterwards."""
    prompts = random_prompts(8, seed=6)

    def accepted_after(first_rung: int) -> float:
        engines.plan(rung=first_rung)
        begun = generate_all(engines.drafting, prompts, tokens=64, at_once=1)
        engines.plan()
        again = [prompt + answer.tokens for prompt, answer in zip(prompts, begun, strict=True)]
        return accepted_length(generate_all(engines.drafting, again, tokens=64, at_once=1))

    assert accepted_after(OFF) == pytest.approx(accepted_after(TREE), rel=0.05)


@pytest.mark.parametrize(
    "keys",
    [
        {"sparktier_rung": 7},
        {"sparktier_rung": 1.5},
        {"sparktier_rung": 1, "sparktier_rows": -1},
        {"sparktier_rung": 1, "sparktier_tier0_cap": 2.5},
        {"sparktier_rung": 1, "sparktier_tier64_cap": 2},
        {"sparktier_rung": 1, "dspark_force_budget_frac": 0.5},
        {"sparktier_rung": 1, "speculative_accept_threshold_single": 0.5},
        {"sparktier_rung": 1, "sparktier_plan_version": 40},
        {"sparktier_rung": 1, "sparktier_tier44_cap": 2},
        {"sparktier_rung": 1, "sparktier_tier0_floor": 2},
        {"sparktier_rows": 3},
    ],
    ids=str,
)
def test_a_plan_that_breaks_a_rule_is_refused_whole(engines: Engines, keys: dict[str, float]) -> None:
    engines.plan()
    before = plan_in_force(engines)
    assert not set_plan(engines.drafting, keys)
    found = plan_in_force(engines)
    assert found["refused"]
    assert without_age(found) == without_age(before | {"refused": found["refused"]})


@pytest.mark.parametrize("rung", [TREE, CHAIN])
def test_every_request_ends_alone(engines: Engines, rung: int) -> None:
    engines.plan(rung=rung)
    assert_every_request_ends_alone(engines.deployments[1])


@pytest.mark.parametrize("place", [0, 1], ids=["plain", "drafting"])
def test_random_requests_end_alone(engines: Engines, place: int) -> None:
    engines.plan()
    outcome = run_random_requests(engines.deployments[place], 100, seed=place)
    assert {"answered", "refused"} <= set(outcome.ends)
    outcome.ties(engines.model)
    assert not outcome.sampled, outcome.sampled


def test_every_request_ends_alone_in_plain_decoding(engines: Engines) -> None:
    assert_every_request_ends_alone(engines.deployments[0])


@pytest.mark.parametrize("knob", ["single", "acc"])
def test_lossy_thresholds_are_refused_while_it_runs(engines: Engines, knob: str) -> None:
    name = f"speculative_accept_threshold_{knob}"
    assert not set_plan(engines.drafting, {name: 0.5})
    assert name in plan_in_force(engines)["refused"]


def test_the_plan_is_read_back_and_leaves_nothing_of_the_one_before(engines: Engines) -> None:
    first = {"sparktier_tier0_cap": 1, "sparktier_tier0_promise": 80.0, "sparktier_tier0_weight": 2.0}
    assert set_plan(engines.drafting, {"sparktier_rung": TREE, **first})
    found = plan_in_force(engines)
    assert found["tiers"]["0"] == {"promise_tok_s": 80.0, "weight": 2.0, "cap_tokens": 1}
    version = found["plan_version"]
    assert set_plan(engines.drafting, {"sparktier_rung": SHORT, "sparktier_rows": 12})
    found = plan_in_force(engines)
    assert found.pop("plan_version") > version
    assert found.pop("tiers")["0"] == {"promise_tok_s": None, "weight": 1.0, "cap_tokens": None}
    assert found["age_ms"] >= 0
    assert without_age(found) == {
        "epoch": 1,
        "ttl_ms": None,
        "rung": SHORT,
        "rows": 12,
        "seats": None,
        "default_tier": 0,
        "expired": False,
        "refused": None,
        "latched": None,
    }


def test_a_plan_whose_time_is_over_ends_at_the_safe_rung_and_changes_no_token(engines: Engines) -> None:
    """Both ranks read it back, and are on one rung: ranks on two would wait for each other for ever."""
    prompts = random_prompts(4, seed=12)
    engines.plan()
    whole = tokens_of(generate_all(engines.drafting, prompts, tokens=32, at_once=4))
    engines.plan(ttl_ms=1, tier0_promise=80)
    over = tokens_of(generate_all(engines.drafting, prompts, tokens=32, at_once=4))
    assert over == whole
    signals = read_message(Signals, replica_http.get(f"{engines.drafting}/sparktier/signals", timeout=60.0).content)
    assert (signals.expired, signals.rung, signals.rows) == (True, SHORT, 0)
    assert signals.shares[0].promise_tok_s == 80.0
    engines.plan()
    found = plan_in_force(engines)
    assert (found["expired"], found["rung"]) == (False, TREE)


def without_age(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "age_ms"}


def plan_in_force(engines: Engines) -> dict[str, Any]:
    states = replica_http.get(f"{engines.drafting}/server_info", timeout=60.0).json()["internal_states"]
    found: dict[str, Any] = states[0]["sparktier"]
    return found
