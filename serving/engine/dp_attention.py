"""What attention groups need to start under Ray and to run on CPUs, where SGLang 0.5.23 by itself does neither.

Under Ray it declares the address where ranks meet after its settings are published, which it then refuses. Knows
nothing of requests.
"""

import os
import socket
from contextlib import closing

import ray

from sparktier.serving.clients.addresses import host_port

# Below the range that systems give to connections; SGLang takes six ports after the first.
_PORTS = range(20000, 32000, 8)
_PORTS_OF_ONE = 7


def meeting_place(groups: int) -> dict[str, str]:
    """Return the argument that tells where the ranks of `groups` attention groups meet; one group needs none."""
    if groups == 1:
        return {}
    host = ray.util.get_node_ip_address()
    start = os.getpid() % len(_PORTS)
    ports = [*_PORTS[start:], *_PORTS[:start]]
    first = next(port for port in ports if all(_is_free(host, port + step) for step in range(_PORTS_OF_ONE)))
    return {"dist_init_addr": host_port(host, first)}


def let_start() -> None:
    """Keep SGLang's launcher in this process from declaring and registering what is there already."""
    from sglang.srt.managers import data_parallel_controller
    from sglang.srt.ray import engine

    engine.declare_resolution = lambda *_, **__: None
    # Under Ray the controller of groups shares a process, and its metrics, with the tokenizer.
    data_parallel_controller.start_cpu_monitor_thread = lambda *_: None


def install_on_cpu() -> None:
    """Replace what needs a GPU where a group's tokens are padded, laid among all groups' and taken out again."""
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.layers import dp_attention
    from sglang.srt.model_executor import forward_batch_info

    dp_attention.memcpy_func = dp_attention.memcpy_cpu
    forward_batch_info._is_cpu = True
    GroupCoordinator.reduce_scatterv = GroupCoordinator._deterministic_reduce_scatterv
    # What these wrap in operators that no CPU has, for a compiler's sake, works by itself.
    GroupCoordinator.all_gather_into_tensor = GroupCoordinator._all_gather_into_tensor
    GroupCoordinator.reduce_scatter_tensor = GroupCoordinator._reduce_scatter_tensor


def _is_free(host: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
