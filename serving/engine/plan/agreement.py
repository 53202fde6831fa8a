"""Numbers that ranks decide on the host by clocks of their own, of which only the first rank's count."""

from typing import Any

import torch
from torch import Tensor


def of_first_rank(group: Any, numbers: Tensor) -> Tensor:
    """Return the first rank's `numbers`, int64 on the host, on every rank of SGLang's `group`; None: there is one."""
    if group is None or group.world_size == 1:
        return numbers
    agreed = numbers.clone()
    torch.distributed.broadcast(agreed, src=group.ranks[0], group=group.cpu_group)
    return agreed
