"""Where ranks live: joining a Ray cluster, and one placement group per replica. The only file that knows Ray's API
for placement.

Knows nothing of SGLang, of models, or of what a rank does. On machines without accelerators the "GPU" here is a
logical one: the cluster is told how many ranks a node may hold.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from sparktier.configs.errors import ReplicaError

_NODE_SHARE = 0.001  # any positive amount of `node:<ip>` pins a bundle to that node


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
        ray.init(
            address=address,
            namespace=namespace,
            runtime_env={"env_vars": dict(rank_env)},
            log_to_driver=True,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ReplicaError(
            f"ray.address: a Ray cluster must answer there (found {address}: {error}). Start one, or set ray.address "
            "to null to have `sparktier up` start its own."
        ) from error
    return str(ray.util.get_node_ip_address())


def reserve(
    shape: RankBundles, *, first_node: str, timeout_s: float, clock: Callable[[], float] = time.monotonic
) -> PlacementGroup:
    """Reserve `shape`, rank 0 on `first_node`, and return the group, bundle i for rank i.

    Rank 0 shares a node with the process that serves the replica's HTTP, because they talk over local sockets. Ranks
    fill node after node, so those that exchange most (tensor parallel neighbours) share one. Raises ReplicaError with
    what is there and what is missing when the reservation does not come within `timeout_s`.
    """
    pins = [first_node, *_other_nodes(first_node, shape)]
    bundles = [{"GPU": 1.0, f"node:{pins[rank // shape.ranks_per_node]}": _NODE_SHARE} for rank in range(shape.ranks)]
    group = placement_group(bundles, strategy="PACK")
    deadline = clock() + timeout_s
    while not group.wait(timeout_seconds=min(5.0, timeout_s)):
        if clock() >= deadline:
            remove_placement_group(group)
            raise ReplicaError(_shortage(shape, first_node))
    return group


def _other_nodes(first_node: str, shape: RankBundles) -> list[str]:
    """Return `shape.nodes - 1` further nodes, those with the most free GPUs first (ties by address)."""
    if shape.nodes == 1:
        return []
    free = {address: gpus for address, gpus in free_gpus().items() if address != first_node}
    roomy = sorted((a for a, gpus in free.items() if gpus >= shape.ranks_per_node), key=lambda a: (-free[a], a))
    if len(roomy) < shape.nodes - 1:
        raise ReplicaError(_shortage(shape, first_node))
    return roomy[: shape.nodes - 1]


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
