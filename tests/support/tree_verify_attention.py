"""One FlashInfer paged-prefill wrapper with the tree mask, driven without SGLang."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparktier.kernels.flashinfer_mask import MaskBuffers


class PageBuffers(NamedTuple):
    """Fixed buffers of a wrapper that a graph may capture, all int32.

    qo_indptr, kv_indptr [batch + 1]; kv_indices [max pages]; last_page_len [batch].
    """

    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    last_page_len: Tensor


class AttentionShape(NamedTuple):
    """Heads and types of the target's attention layers on this rank."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    q_dtype: torch.dtype
    kv_dtype: torch.dtype
    sm_scale: float


def wrapper_arguments(*, workspace: Tensor, pages: PageBuffers, mask: MaskBuffers) -> dict[str, Any]:
    """Arguments of `BatchPrefillWithPagedKVCacheWrapper`.

    Always in graph mode: only then does the wrapper use buffers of ours, instead of ones that `plan` makes.
    """
    return {
        "float_workspace_buffer": workspace,
        "kv_layout": "NHD",
        "use_cuda_graph": True,
        "qo_indptr_buf": pages.qo_indptr,
        "paged_kv_indptr_buf": pages.kv_indptr,
        "paged_kv_indices_buf": pages.kv_indices,
        "paged_kv_last_page_len_buf": pages.last_page_len,
        "custom_mask_buf": mask.packed,
        "mask_indptr_buf": mask.indptr,
        "backend": "fa2",
    }


def plan_arguments(*, pages: PageBuffers, shape: AttentionShape) -> dict[str, Any]:
    """Arguments of the wrapper's `plan`, from host tensors of this step's real lengths.

    No mask here: `packed_custom_mask` alone gets an indptr in bits where the kernel adds bytes (right for batch 1
    only), and `custom_mask` costs a byte per bit and a wait for the device. `write_tree_mask` fills the buffers.
    """
    return {
        "qo_indptr": pages.qo_indptr,
        "paged_kv_indptr": pages.kv_indptr,
        "paged_kv_indices": pages.kv_indices,
        "paged_kv_last_page_len": pages.last_page_len,
        "num_qo_heads": shape.num_qo_heads,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim_qk": shape.head_dim,
        "page_size": shape.page_size,
        "causal": False,
        "pos_encoding_mode": "NONE",  # rotary by depth, applied by the model
        "sm_scale": shape.sm_scale,
        "q_data_type": shape.q_dtype,
        "kv_data_type": shape.kv_dtype,
    }


class TreeVerifyAttention:
    """One wrapper for one batch size and row bucket; needs a GPU.

    Life: construct; `plan` on the host before each step (the first one with the bucket's full row count, which bounds
    all later ones); `write_tree_mask(buffers=self.mask, ...)` on the device; `run` once per layer. The last two may be
    captured. Sliding-window layers are not served: FlashInfer tests the window by slot, not by depth.
    """

    def __init__(self, *, workspace: Tensor, batch: int, max_pages: int, max_mask_bytes: int) -> None:
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper

        self.mask = MaskBuffers(
            torch.zeros(max_mask_bytes, dtype=torch.uint8, device=workspace.device),
            torch.zeros(batch + 1, dtype=torch.int32, device=workspace.device),
        )
        sizes = (batch + 1, batch + 1, max_pages, batch)
        self._pages = PageBuffers(*(torch.zeros(n, dtype=torch.int32, device=workspace.device) for n in sizes))
        arguments = wrapper_arguments(workspace=workspace, pages=self._pages, mask=self.mask)
        self._wrapper = BatchPrefillWithPagedKVCacheWrapper(**arguments)

    def plan(self, *, pages: PageBuffers, shape: AttentionShape) -> None:
        """Schedule this step's lengths; `pages` are host tensors, so that nothing waits for the device."""
        self._wrapper.plan(**plan_arguments(pages=pages, shape=shape))

    def run(self, *, q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor) -> None:
        """Attention of q [rows, qo heads, head_dim] over pages [pages, page_size, kv heads, head_dim] into `out`."""
        self._wrapper.run(q, (k_cache, v_cache), out=out)
