"""Two attention groups whose experts are shared out over both ranks decode as one group does, on every rung."""

import concurrent.futures
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support import replica_http
from support.deployment import Deployment, deployed, wait_until
from support.generation import Switching, generate, generate_all, random_prompts, set_plan
from support.oracles.greedy import assert_same_greedy
from support.oracles.greedy_distribution import GreedyDistribution, Penalty
from support.probes.groups_probe import PLAIN
from support.probes.run_ranks import run_ranks

pytestmark = pytest.mark.engine
# The cache of a group holds a third of what eight answers need, and requests are admitted as if they were short.
CROWDED = {
    "model.context_tokens": 256,
    "replicas.kv_tokens": 384,
    "replicas.max_running_requests": 16,
    "replicas.sglang_args.schedule_conservativeness": 0.05,
}
TOKENS = 64
TRIES = 5
PROMPTS = random_prompts(14, seed=7)


@pytest.fixture(scope="module")
def groups(predictable: Path, bigrams: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    output = tmp_path_factory.mktemp("groups") / "output"
    tree = {"speculation.method": "tree", "speculation.draft_path": bigrams, "speculation.tree_rows": 12}
    with deployed(predictable, output, **{"replicas.attention_data_parallel": 2, **CROWDED, **tree}) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def off(groups: Deployment) -> list[list[int]]:
    """What the prompts are answered without drafts, one after another: the other group is idle."""
    assert set_plan(groups.replica_url(), {"sparktier_rung": 0})
    return [answer.tokens for answer in generate_all(groups.replica_url(), PROMPTS, tokens=TOKENS, at_once=1)]


def test_each_rank_is_a_group_and_holds_half_of_the_experts(groups: Deployment) -> None:
    assert [rank["local_experts"] for rank in groups.ranks()] == [[0, 3], [4, 7]]


def test_off_says_what_the_model_itself_says(off: list[list[int]], predictable: Path) -> None:
    whole = GreedyDistribution(predictable)
    assert not any(whole.wrong(p, tokens, Penalty()) for p, tokens in zip(PROMPTS[:4], off, strict=False))


@pytest.mark.parametrize("rung", [1, 2, 3], ids=["short", "chain", "tree"])
@pytest.mark.parametrize("at_once", [1, 5], ids=["one group idle", "uneven groups"])
def test_every_rung_says_what_off_says(
    groups: Deployment, off: list[list[int]], predictable: Path, rung: int, at_once: int
) -> None:
    assert set_plan(groups.replica_url(), {"sparktier_rung": rung})
    asked = PROMPTS[: 2 if at_once == 1 else len(PROMPTS)]
    answers = generate_all(groups.replica_url(), asked, tokens=TOKENS, at_once=at_once)
    assert_same_greedy(off[: len(asked)], [answer.tokens for answer in answers], asked, predictable)
    assert sum(answer.meta["spec_verify_ct"] for answer in answers) < 0.8 * TOKENS * len(asked)


def test_sampled_tokens_are_those_of_off(groups: Deployment) -> None:
    url, prompts = groups.replica_url(), PROMPTS[:5]
    said = {}
    for rung in (0, 3):
        assert set_plan(url, {"sparktier_rung": rung})
        with concurrent.futures.ThreadPoolExecutor(5 if rung else 1) as pool:
            said[rung] = list(
                pool.map(
                    lambda each: generate(url, each[1], tokens=TOKENS, temperature=0.9, sampling_seed=each[0]).tokens,
                    enumerate(prompts),
                )
            )
    assert said[3] == said[0]


@pytest.mark.prove  # as often as it takes until requests crowd each other out
def test_plans_that_switch_and_caches_that_run_out_change_no_token(
    groups: Deployment, off: list[list[int]], predictable: Path
) -> None:
    url, before = groups.replica_url(), retractions(groups.replica_url())
    for _ in range(TRIES):
        answers = under_switching_plans(url, [*PROMPTS, *PROMPTS])
        assert_same_greedy([*off, *off], answers, [*PROMPTS, *PROMPTS], predictable)
        # On a busy machine requests may come too far apart to crowd each other out.
        if retractions(url) > before:
            break
    assert retractions(url) > before


def under_switching_plans(url: str, prompts: list[list[int]]) -> list[list[int]]:
    """What `prompts` are answered while plans change and two other requests are aborted."""
    choices = {"rung": (0, 1, 2, 3), "rows": (0, 6, 20), "tier0_cap": (1, 4, 11)}
    # SGLang aborts every request whose name begins so.
    names = ["doomed-0", "doomed-1"]
    endless = {"input_ids": prompts[0], "sampling_params": {"max_new_tokens": 180, "ignore_eos": True}}
    with Switching(url, choices, seed=1, pause_s=0.05), concurrent.futures.ThreadPoolExecutor() as pool:
        doomed = [
            pool.submit(replica_http.post, f"{url}/generate", json={**endless, "rid": name}, timeout=300.0)
            for name in names
        ]
        waiting = pool.submit(generate_all, url, prompts, tokens=TOKENS, at_once=16)
        # An abort that comes before its request ends nothing.
        while concurrent.futures.wait(doomed, timeout=0.5).not_done:
            for name in names:
                replica_http.post(f"{url}/abort_request", json={"rid": name}, timeout=60.0)
        for each in doomed:
            each.result()
        return [answer.tokens for answer in waiting.result()]


def test_each_group_reports_once(groups: Deployment) -> None:
    signals = replica_http.get(f"{groups.replica_url()}/sparktier/signals", timeout=30.0)
    assert [rank["dp_rank"] for rank in signals.json()["ranks"]] == [0, 1]
    page = replica_http.get(f"{groups.replica_url()}/metrics", timeout=30.0).text
    ours = [line.rsplit(" ", 1)[0] for line in page.splitlines() if line.startswith("sparktier")]
    assert ours
    assert len(set(ours)) == len(ours)


def test_both_groups_are_used_and_let_go(groups: Deployment) -> None:
    answers = generate_all(groups.replica_url(), random_prompts(4, seed=2), tokens=8, at_once=4)
    assert {answer.meta["dp_rank"] for answer in answers} == {0, 1}
    wait_until(lambda: groups.running_requests() == 0, timeout_s=30, what=lambda: "idle groups")
    assert generate(groups.replica_url(), [7, 8, 9], tokens=4).tokens


def retractions(url: str) -> float:
    """How many times a request of either group lost its KV cache so far."""
    name = "sglang:num_retracted_requests_total{"
    page = replica_http.get(f"{url}/metrics", timeout=60.0).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_a_thousand_steps_of_random_loads_end_and_say_what_plain_decoding_says(
    predictable: Path, bigrams: Path, tmp_path: Path
) -> None:
    """Each rank has plans of its own, requests end early, caches run out, and groups are idle in turn."""
    ours, plain = (stepped_groups(predictable, bigrams, tmp_path / rule, rule) for rule in ("match", PLAIN))
    steps = [rank["steps"] for rank in ours]
    assert len(steps[0]) == len(steps[1]) >= 1000
    # Plain decoding also gathers logits.
    usual = Counter(plain[0]["steps"][-1]["collectives"])
    for first, second in zip(*steps, strict=True):
        assert first["agreed"] == second["agreed"]
        assert first["passed"] == second["passed"]
        assert first["agreed"].rung == min(step["own_rung"] for step in (first, second) if step["rows"])
        assert max(sum(first["rows"]), sum(second["rows"])) <= first["agreed"].rows
        for step in (first, second):
            assert not Counter(step["collectives"]) - usual
    assert {step["agreed"].decoding for step in steps[0]} == {(True, True), (True, False), (False, True)}
    assert sum(rank["retractions"] for rank in ours) > 0
    for rank, other in zip(ours, plain, strict=True):
        said = rank["tokens"]
        assert said["plans"] == {name: said["off"][name] for name in said["plans"]}
        assert said["off"] == other["tokens"]["off"]


def stepped_groups(model: Path, draft: Path, out: Path, rule: str) -> list[dict[str, Any]]:
    """What each of two ranks says and runs, drafting by `rule` or plainly."""
    out.mkdir()
    run_ranks("groups_probe", [model, draft, rule, 40], out=out, ranks=2, timeout_s=3000)
    return [torch.load(out / str(rank), weights_only=False) for rank in range(2)]
