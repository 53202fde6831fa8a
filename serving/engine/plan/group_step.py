"""What the attention groups of a replica agree on before a decode step: its rung, and the rows of every rank's pass.

Experts are shared by all groups, so each pass waits for the others' rows. What a group would do alone travels in the
message that SGLang's scheduler gathers from all groups before each step anyway.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparktier.configs.plan_keys import Rung

_ON_BATCH = "sparktier_group_step"


class Wish(NamedTuple):
    """What a group would run alone: its rung, and rows of its verify pass. A group that decodes nothing has none."""

    rung: int = int(max(Rung))
    rows: int = 0


class GroupStep(NamedTuple):
    """What every rank runs in a step: the lowest rung, the most rows, and the most requests of a group.

    groups: how many there are. decoding: whether each of them has requests.
    """

    rung: Rung
    rows: int
    requests: int
    decoding: tuple[bool, ...]

    @property
    def pass_rows(self) -> list[int]:
        """The rows of each group's pass."""
        return [self.rows if busy else 0 for busy in self.decoding]


def agreed(wishes: Sequence[Sequence[int]], requests: Sequence[int], *, unit: int) -> GroupStep:
    """Return what all groups run, of the `wishes` and `requests` of each; rows are a multiple of `unit`."""
    rows = max(max(rows for _, rows in wishes), max(requests))
    return GroupStep(
        rung=Rung(min(rung for rung, _ in wishes)),
        rows=-(-rows // unit) * unit,
        requests=max(requests),
        decoding=tuple(count > 0 for count in requests),
    )


def group_step_of(batch: Any) -> GroupStep | None:
    """Return what the groups agreed on for SGLang's `batch`; None where there is one group, or none decodes."""
    found: GroupStep | None = getattr(batch, _ON_BATCH, None)
    return found


def install(wish: Callable[[Any], Wish]) -> None:
    """Have SGLang's message between groups carry what `wish` returns for this rank's decode batch."""
    from sglang.srt.managers.scheduler_components import dp_attn
    from sglang.srt.runtime_context import get_parallel

    own = Wish()
    prepare, update = dp_attn.SchedulerDPAttnAdapter.prepare_mlp_sync_batch, dp_attn._update_gather_batch

    @dataclass
    class SyncInfo(dp_attn.MLPSyncBatchInfo):  # type: ignore[misc]
        """SGLang's message with two numbers more."""

        wish: Wish = field(default_factory=lambda: own)

        def _get_local_tensor(self, device: Any, dtype: torch.dtype = torch.int64) -> Tensor:
            return _longer(super()._get_local_tensor(device, dtype), self.wish)

        def _get_fallback_tensor(self, device: Any, dtype: torch.dtype = torch.int64) -> Tensor:
            return _longer(super()._get_fallback_tensor(device, dtype), Wish())

    def prepare_with_wish(self: Any, local_batch: Any) -> Any:
        nonlocal own
        decodes = local_batch is not None and local_batch.forward_mode.is_decode()
        own = wish(local_batch) if decodes else Wish()
        return prepare(self, local_batch)

    def update_with_agreed(batch: Any, info: Any, *args: Any, **kwargs: Any) -> None:
        update(batch, info, *args, **kwargs)
        wishes, requests = info.tp0_info_cpu[:, -len(Wish._fields) :].tolist(), info.global_num_tokens
        decodes = not info.is_extend_in_batch and max(requests) > 0
        step = agreed(wishes, requests, unit=get_parallel().attn_tp_size) if decodes else None
        setattr(batch, _ON_BATCH, step)

    dp_attn.MLPSyncBatchInfo = SyncInfo
    dp_attn.SchedulerDPAttnAdapter.prepare_mlp_sync_batch = prepare_with_wish
    dp_attn._update_gather_batch = update_with_agreed


def _longer(message: Tensor, wish: Wish) -> Tensor:
    return torch.cat((message, message.new_tensor(wish)))
