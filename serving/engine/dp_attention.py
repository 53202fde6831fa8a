"""Lets attention groups start under Ray and run on CPUs; SGLang 0.5.23 by itself does neither.

SGLang's Ray launcher sets `dist_init_addr` after the arguments are frozen and then rejects it; we set it before and
skip its second declaration.
"""

import os
import socket
from contextlib import closing

import ray

from sparktier.serving.clients.addresses import host_port

# Below the range that systems give to connections; SGLang takes six ports after the first.
_PORTS = range(20000, 32000, 8)
_PORTS_PER_REPLICA = 7


def dist_init_address(groups: int) -> dict[str, str]:
    """Return SGLang's `dist_init_addr` for `groups` attention groups, on free ports; one group needs none."""
    if groups == 1:
        return {}
    host = ray.util.get_node_ip_address()
    start = os.getpid() % len(_PORTS)
    ports = [*_PORTS[start:], *_PORTS[:start]]
    first = next(port for port in ports if all(_is_free(host, port + step) for step in range(_PORTS_PER_REPLICA)))
    return {"dist_init_addr": host_port(host, first)}


def patch_ray_launcher() -> None:
    """Skip the launcher's second declaration of its arguments, and its second registration of CPU metrics."""
    from sglang.srt.managers import data_parallel_controller
    from sglang.srt.ray import engine

    engine.declare_resolution = lambda *_, **__: None
    # Under Ray the controller of groups shares a process, and its metrics, with the tokenizer.
    data_parallel_controller.start_cpu_monitor_thread = lambda *_: None


def install_on_cpu() -> None:
    """Replace the GPU operations that pad, gather and scatter the tokens of attention groups."""
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.layers import dp_attention
    from sglang.srt.model_executor import forward_batch_info

    dp_attention.memcpy_func = dp_attention.memcpy_cpu
    forward_batch_info._is_cpu = True
    GroupCoordinator.reduce_scatterv = GroupCoordinator._deterministic_reduce_scatterv
    # SGLang wraps these two for its compiler in operators that CPUs lack; the functions inside run on CPUs.
    GroupCoordinator.all_gather_into_tensor = GroupCoordinator._all_gather_into_tensor
    GroupCoordinator.reduce_scatter_tensor = GroupCoordinator._reduce_scatter_tensor


def _is_free(host: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
