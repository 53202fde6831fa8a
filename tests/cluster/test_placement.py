"""Ranks on real Ray nodes: three of them on this machine, told apart by their loopback addresses."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from sparktier.cluster.placement import RankBundles, free_gpus, join_cluster, reserve
from sparktier.configs.errors import ReplicaError

SMALL, LARGE = "127.0.0.2", "127.0.0.3"


@pytest.fixture(scope="module")
def here() -> Iterator[str]:
    """This node's address in a cluster of it (2 GPUs), a small node (1) and a large one (3), none of them real."""
    cluster = Cluster()
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    try:
        cluster.add_node(num_gpus=2, include_dashboard=False, **node)
        cluster.add_node(node_ip_address=SMALL, num_gpus=1, **node)
        cluster.add_node(node_ip_address=LARGE, num_gpus=3, **node)
        yield join_cluster(cluster.address, namespace="placement", rank_env={"SPARKTIER_SEEN": "yes"})
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def all_free(here: str) -> Iterator[None]:
    """Nothing is reserved before a test; what one reserved is given back."""
    yield
    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
    deadline = time.monotonic() + 20
    while free_gpus() != {here: 2.0, SMALL: 1.0, LARGE: 3.0}:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def nodes_of(group: PlacementGroup) -> list[str]:
    """The node of each bundle, in their order."""
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    places: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return [addresses[places[bundle]] for bundle in sorted(places)]


def test_a_replica_of_one_node_is_with_its_engine(here: str) -> None:
    assert nodes_of(reserve(RankBundles(ranks=2, nodes=1), first_node=here, timeout_s=20)) == [here, here]


def test_ranks_fill_node_after_node_where_there_is_room(here: str) -> None:
    group = reserve(RankBundles(ranks=4, nodes=2), first_node=here, timeout_s=20)
    assert nodes_of(group) == [here, here, LARGE, LARGE]


def test_the_roomiest_node_is_taken_first(here: str) -> None:
    assert nodes_of(reserve(RankBundles(ranks=2, nodes=2), first_node=here, timeout_s=20)) == [here, LARGE]


@pytest.mark.parametrize("shape", [RankBundles(ranks=3, nodes=1), RankBundles(ranks=6, nodes=3)])
def test_a_shortage_is_told_with_what_is_there_and_holds_nothing(here: str, shape: RankBundles) -> None:
    needs = f"needs {shape.ranks_per_node} free GPUs on each of {shape.nodes} nodes, {here} among them"
    with pytest.raises(ReplicaError, match=needs) as caught:
        reserve(shape, first_node=here, timeout_s=1.0)
    assert all(f"{node}: {gpus}" in str(caught.value) for node, gpus in ((here, 2), (SMALL, 1), (LARGE, 3)))
    assert free_gpus() == {here: 2.0, SMALL: 1.0, LARGE: 3.0}


def test_room_that_comes_back_in_time_is_taken(here: str) -> None:
    held = reserve(RankBundles(ranks=3, nodes=1), first_node=LARGE, timeout_s=20)
    giving_back = threading.Timer(1.0, remove_placement_group, [held])
    giving_back.start()
    assert nodes_of(reserve(RankBundles(ranks=4, nodes=2), first_node=here, timeout_s=30))[2:] == [LARGE, LARGE]
    giving_back.join()


def test_ranks_get_the_environment_on_every_node(here: str) -> None:
    @ray.remote(num_cpus=0, num_gpus=0)
    def seen() -> tuple[str | None, str]:
        import os

        return os.environ.get("SPARKTIER_SEEN"), ray.util.get_node_ip_address()

    places = [seen.options(resources={f"node:{node}": 0.001}).remote() for node in (here, LARGE)]
    assert [value for value, _ in ray.get(places, timeout=120)] == ["yes", "yes"]


def test_a_wrong_address_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ReplicaError, match=f"ray.address: a Ray cluster must answer there .found {address}"):
            join_cluster(address, namespace="placement", rank_env={})
