"""One replica over two Ray nodes: a rank and half of the experts on each, and the tokens of the model itself.

The nodes are on this machine, told apart by their loopback addresses; the replica joins a cluster that was there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from support.deployment import Deployment, deployed
from support.generation import generate_all, random_prompts, set_plan
from support.oracles.greedy_distribution import GreedyDistribution, Penalty

OTHER = "127.0.0.2"
OFF, CHAIN = 0, 2
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Ray cluster of two nodes with a core and a logical GPU each."""
    cores = os.sched_getaffinity(0)
    halves = [{core for core in cores if core % 2 == half} or cores for half in (0, 1)]
    nodes = Cluster()
    try:
        for node, half in zip(({"include_dashboard": False}, {"node_ip_address": OTHER}), halves, strict=True):
            os.sched_setaffinity(0, half)  # inherited by what the node starts
            nodes.add_node(num_cpus=1, num_gpus=1, object_store_memory=100 << 20, **node)
        os.sched_setaffinity(0, cores)
        yield nodes.address
    finally:
        os.sched_setaffinity(0, cores)
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="module")
def spread(
    cluster: str, predictable: Path, bigrams: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """It drafts chains, and needs no trees for that: other tests draft chains with an engine that also has trees."""
    output = tmp_path_factory.mktemp("two-nodes") / "output"
    chain = {"speculation.method": "chain", "speculation.draft_path": bigrams}
    with deployed(predictable, output, **{"ray.address": cluster, "replicas.nodes": 2}, **chain) as deployment:
        yield deployment


def test_each_node_has_a_rank_and_half_of_the_experts(spread: Deployment) -> None:
    ranks = spread.ranks()
    assert [rank["local_experts"] for rank in ranks] == [[0, 3], [4, 7]]
    assert ranks[0]["node"] != OTHER
    assert ranks[1]["node"] == OTHER


@pytest.mark.parametrize("rung", [OFF, CHAIN])
def test_tokens_are_those_of_the_model_itself(spread: Deployment, predictable: Path, rung: int) -> None:
    prompts, whole = random_prompts(6, seed=4), GreedyDistribution(predictable)
    assert set_plan(spread.replica_url(), {"sparktier_rung": rung})
    answers = generate_all(spread.replica_url(), prompts, tokens=32, at_once=3)
    assert {len(answer.tokens) for answer in answers} == {32}
    assert not any(whole.wrong(p, answer.tokens, Penalty()) for p, answer in zip(prompts, answers, strict=True))
    steps = sum(answer.meta["spec_verify_ct"] for answer in answers)
    assert steps < 6 * 28 if rung == CHAIN else steps >= 6 * 31
