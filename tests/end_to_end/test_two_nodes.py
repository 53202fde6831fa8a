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
from support.generation import generate_all, random_prompts
from support.oracles.greedy import assert_same_greedy, plain_greedy

OTHER = "127.0.0.2"
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
def spread(cluster: str, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    output = tmp_path_factory.mktemp("two-nodes") / "output"
    with deployed(tiny, output, **{"ray.address": cluster, "replicas.nodes": 2}) as deployment:
        yield deployment


def test_each_node_has_a_rank_and_half_of_the_experts(spread: Deployment) -> None:
    ranks = spread.ranks()
    assert [rank["local_experts"] for rank in ranks] == [[0, 3], [4, 7]]
    assert ranks[0]["node"] != OTHER
    assert ranks[1]["node"] == OTHER


def test_tokens_are_those_of_the_model_itself(spread: Deployment, tiny: Path) -> None:
    prompts = random_prompts(6, seed=4)
    answers = generate_all(spread.replica_url(), prompts, tokens=32, at_once=3)
    assert_same_greedy(plain_greedy(tiny, prompts, tokens=32), [answer.tokens for answer in answers], prompts, tiny)
