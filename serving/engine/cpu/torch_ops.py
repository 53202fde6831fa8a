"""Torch versions of the few Triton-only operations that speculation uses on a CPU.

SGLang picks Triton on every device that is neither its CPU engine nor a named accelerator, so our platform would launch
GPU kernels. `platform.py` returns two of these operations through the platform contract; `install` replaces the others.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from torch import Tensor

Ints = NDArray[np.int64]


class CpuKvPool(MHATokenToKVPool):
    """SGLang's KV pool with accepted rows moved by plain indexing. Source: `sglang/srt/mem_cache/memory_pool.py`."""

    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None

    def _move_kv_cache_impl(self, tgt_loc: Tensor, src_loc: Tensor) -> None:
        for buffer in (*self.k_buffer, *self.v_buffer):
            buffer[tgt_loc] = buffer[src_loc]


def window_slots(
    *, req_pool_indices: Tensor, req_to_token: Tensor, start_offset: Tensor, end_offset: Tensor, **_: Any
) -> Tensor:
    """KV slots of positions [start, end) of each request, packed: [sum(end - start)] int64."""
    places = _places(req_pool_indices, start_offset, end_offset)
    return torch.from_numpy(req_to_token.numpy()[places].astype(np.int64))


def write_slots(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    batch_size: int,
) -> None:
    """Write packed slots `out_cache_loc` into the table at positions [start, end) of each request, in place."""
    places = _places(req_pool_indices, start_offset, end_offset)
    req_to_token.numpy()[places] = out_cache_loc.numpy()[: len(places[0])]


def _places(requests: Tensor, start: Tensor, end: Tensor) -> tuple[Ints, Ints]:
    """Return the table rows and positions of [start, end) of each request, packed."""
    firsts = start.numpy().astype(np.int64)
    lengths = end.numpy() - firsts
    shifts = np.repeat(firsts - (lengths.cumsum() - lengths), lengths)
    return np.repeat(requests.numpy(), lengths), shifts + np.arange(len(shifts))


def use_torch_draft(model: Any) -> None:
    """Keep a bfloat16 draft from the two fused kernels that SGLang picks by dtype; other models have neither."""
    for module in model.modules():
        if getattr(module, "use_table_qk_norm_rope", False):
            module.use_table_qk_norm_rope = False
    if hasattr(model, "_build_fused_kv_write_bundle"):
        model._build_fused_kv_write_bundle = lambda _pool: None


def install() -> None:
    """Replace SGLang's Triton-only functions in this process."""
    from sglang.srt.mem_cache import allocation

    allocation.assign_req_to_token_pool_func = write_slots
    allocation.get_last_loc = allocation.get_last_loc_torch
