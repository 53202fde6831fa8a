"""Two attention groups whose experts are shared out over both ranks decode as one group does, busy or idle."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import replica_http
from support.deployment import Deployment, deployed, wait_until
from support.generation import generate, generate_all, random_prompts
from support.oracles.greedy_distribution import GreedyDistribution, Penalty

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def groups(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    output = tmp_path_factory.mktemp("groups") / "output"
    with deployed(tiny, output, **{"replicas.attention_data_parallel": 2}) as deployment:
        yield deployment


def test_each_rank_is_a_group_and_holds_half_of_the_experts(groups: Deployment) -> None:
    assert [rank["local_experts"] for rank in groups.ranks()] == [[0, 3], [4, 7]]


def test_tokens_are_those_of_the_model_itself(groups: Deployment, tiny: Path) -> None:
    prompts, whole = random_prompts(8, seed=1), GreedyDistribution(tiny)
    # One at a time leaves the other group idle; five at once share them out unevenly.
    for at_once in (1, 5):
        answers = generate_all(groups.replica_url(), prompts, tokens=32, at_once=at_once)
        assert {len(answer.tokens) for answer in answers} == {32}
        assert not any(whole.wrong(p, answer.tokens, Penalty()) for p, answer in zip(prompts, answers, strict=True))


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
