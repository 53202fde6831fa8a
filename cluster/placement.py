"""Joins a Ray cluster and reserves one placement group per replica. The only file that uses Ray's placement API.

On machines without accelerators the "GPU" here is a logical one: the cluster is told how many ranks a node may hold.
"""

import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from sparktier.configs.errors import ReplicaError

_NODE_SHARE = 0.001  # any positive amount of `node:<ip>` pins a bundle to that node
_POLL_S = 0.5
_GROUP_TIMEOUT_S = 5.0  # its nodes had room a moment ago; if another was faster, we look again
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class RankBundles:
    """The shape of one replica's placement group: `ranks` bundles of one GPU each over `nodes` nodes."""

    ranks: int
    nodes: int

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each node; `nodes` divides `ranks` (a rule of the settings)."""
        return self.ranks // self.nodes


def join_cluster(address: str, *, namespace: str, rank_env: Mapping[str, str]) -> str:
    """Join the Ray cluster at `address` and return this node's address in it.

    `rank_env` becomes the environment of every rank this process starts, on any node. Raises ReplicaError when nothing
    answers at `address`.
    """
    try:
        _require_listener(address)
        ray.init(
            address=address,
            namespace=namespace,
            runtime_env={"env_vars": dict(rank_env)},
            log_to_driver=True,
            configure_logging=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ReplicaError(
            f"ray.address: a Ray cluster must answer there (found {address}: {error}). Start one, or set ray.address "
            "to null to have `sparktier up` start its own."
        ) from error
    return str(ray.util.get_node_ip_address())


def reserve(shape: RankBundles, *, first_node: str, timeout_s: float) -> PlacementGroup:
    """Reserve `shape`, rank 0 on `first_node`, and return the group, bundle i for rank i.

    Rank 0 shares a node with the process that serves the replica's HTTP, because they talk over local sockets. Ranks
    fill node after node, so those that exchange most (tensor parallel neighbours) share one. Raises ReplicaError with
    what is there and what is missing when there is no room within `timeout_s`; nothing is then left reserved.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        # Anew each time: others reserve too, and what a dead replica held comes back on any node.
        nodes = _nodes_with_room(shape, first_node)
        if nodes and (group := _reserved(shape, nodes)):
            return group
        if time.monotonic() >= deadline:
            raise ReplicaError(_shortage(shape, first_node))
        time.sleep(_POLL_S)


def _require_listener(address: str) -> None:
    """Raise OSError unless something listens: Ray itself takes minutes to give up on a wrong address."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _nodes_with_room(shape: RankBundles, first_node: str) -> list[str]:
    """Return the nodes to fill, `first_node` and the roomiest others, or none while they don't suffice."""
    free = free_gpus()
    roomy = [address for address, gpus in free.items() if gpus >= shape.ranks_per_node]
    others = sorted((address for address in roomy if address != first_node), key=lambda node: (-free[node], node))
    enough = first_node in roomy and len(others) >= shape.nodes - 1
    return [first_node, *others[: shape.nodes - 1]] if enough else []


def _reserved(shape: RankBundles, nodes: Sequence[str]) -> PlacementGroup | None:
    bundles = [{"GPU": 1.0, f"node:{nodes[rank // shape.ranks_per_node]}": _NODE_SHARE} for rank in range(shape.ranks)]
    group = placement_group(bundles, strategy="PACK")
    if group.wait(timeout_seconds=_GROUP_TIMEOUT_S):
        return group
    remove_placement_group(group)
    return None


def free_gpus() -> dict[str, float]:
    """Return the GPUs that no one has reserved, by node address, for the cluster this process has joined."""
    available = ray._private.state.available_resources_per_node()
    gpus: Counter[str] = Counter()
    for node in ray.nodes():
        if node["Alive"]:
            gpus[node["NodeManagerAddress"]] += available.get(node["NodeID"], {}).get("GPU", 0.0)
    return dict(gpus)


def _shortage(shape: RankBundles, first_node: str) -> str:
    there = ", ".join(f"{address}: {gpus:g}" for address, gpus in sorted(free_gpus().items())) or "none"
    return (
        f"replicas: a replica needs {shape.ranks_per_node} free GPUs on each of {shape.nodes} nodes, {first_node} "
        f"among them (free now: {there}). Add nodes, lower replicas.count or replicas.tensor_parallel, or free what "
        "others hold."
    )
