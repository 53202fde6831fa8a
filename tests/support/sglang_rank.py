"""SGLang's process context of one rank, without the group's other processes: enough to build its layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def cpu_server_args(model: Path) -> Any:
    """SGLang's arguments for a CPU, with our plugin loaded as in every engine process."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    return ServerArgs(model_path=str(model), device="cpu")


@contextmanager
def rank(server_args: Any, index: int, size: int) -> Iterator[None]:
    """The context of rank `index` of `size` that share attention heads and experts."""
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.runtime_context import SpawnRanks, create_context, get_parallel, use_context

    sizes = {"tp_size": size, "attn_tp_size": size, "moe_ep_size": size, "moe_tp_size": 1}
    ranks = {"tp_rank": index, "attn_tp_rank": index, "moe_ep_rank": index}
    group, alone = SimpleNamespace(world_size=size, rank_in_group=index), SimpleNamespace(world_size=1, rank_in_group=0)
    alone.is_first_rank = alone.is_last_rank = True
    groups = {"tp_group": group, "attn_tp_group": group, "moe_ep_group": group, "moe_tp_group": alone}
    with use_context(create_context(server_args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))):
        initialize_moe_config()
        with get_parallel().override(**sizes, **ranks, **groups, pp_group=alone):
            yield
