"""The ranks of a training run as torchrun sets them, and the sum over them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class DistributedContext:
    """This process: rank `rank` of `world`, on `device`."""

    rank: int
    world: int
    device: torch.device

    def total(self, values: Tensor) -> Tensor:
        """Sum `values` over all ranks."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values


@contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Join the process group that torchrun describes (none: a run of one rank) and leave it at the end."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if world == 1:
        yield DistributedContext(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield DistributedContext(rank, world, device)
    finally:
        dist.destroy_process_group()
