"""Our FlashInfer backend without a GPU: buffers on the CPU, and wrappers that record what they are told.

They bind each plan to the installed release's signature.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import flashinfer
import torch
from torch import Tensor

from sparktier.serving.engine.cuda.flashinfer_attention import LadderFlashInfer

SLOTS, CONTEXT, MOST_ROWS = 5, 64, 60
PLAN = inspect.signature(flashinfer.BatchPrefillWithPagedKVCacheWrapper.plan)


class Wrapper:
    """Records plans; the first is FlashInfer's own, later ones are made without waiting for the device.

    modules: what its compiled module was told. The buffers are those that a graph reads.
    """

    is_cuda_graph_enabled, _backend, device = True, "fa2", torch.device("cpu")

    def __init__(self, masked: bool, qo_indptr: Tensor, kv_indptr: Tensor, kv_indices: Tensor) -> None:
        self.masked, self.plans, self.modules = masked, list[dict[str, Any]](), list[tuple[Any, ...]]()
        self._float_workspace_buffer = torch.zeros(1)
        self._int_workspace_buffer, self._pin_memory_int_workspace_buffer = torch.zeros(1), torch.zeros(1)
        self._qo_indptr_buf, self._paged_kv_indptr_buf, self._paged_kv_indices_buf = qo_indptr, kv_indptr, kv_indices
        self._paged_kv_last_page_len_buf = torch.ones(len(qo_indptr) - 1, dtype=torch.int32)
        self._max_total_num_rows = self._cached_module = None

    def begin_forward(self, *args: Any, **kwargs: Any) -> None:
        told = PLAN.bind(self, *args, **kwargs).arguments
        self.plans.append(told)
        self._max_total_num_rows = int(told["qo_indptr"][-1])
        self._cached_module = SimpleNamespace(plan=lambda *given: self.modules.append(given))


class Attention(LadderFlashInfer):
    """The backend with buffers on the CPU and no model."""

    def __init__(
        self,
        *,
        slots: int = SLOTS,
        most_rows: int = MOST_ROWS,
        context: int = CONTEXT,
        made: Callable[..., Tensor] = torch.zeros,
    ) -> None:
        """`made`: makes the buffers, of given sizes and dtype."""
        self.dispatch_reason = None
        self.indices_updater_prefill = SimpleNamespace(
            num_qo_heads=8, num_kv_heads=2, head_dim=64, q_data_type=torch.bfloat16, data_type=torch.bfloat16
        )
        self.kv_last_page_len = torch.ones(slots, dtype=torch.int32)
        indptrs = [[made(slots + 1, dtype=torch.int32)] for _ in range(3)]
        self.cuda_graph_qo_indptr, self.kv_indptr, self.cuda_graph_qk_indptr = indptrs
        self.cuda_graph_kv_indices = [made(most_rows * context, dtype=torch.int32)]
        self.cuda_graph_custom_mask = made(most_rows * context, dtype=torch.uint8)
        self.kv_index_translator = SimpleNamespace(pack_read_stream=self._pack)
        self._is_draft, self._verify_wrappers = False, {}
        self.prefill_cuda_graph_metadata: dict[int, Any] = {}
        self._plans = {None: self.prefill_cuda_graph_metadata}

    def replay(self, forward_batch: Any) -> None:
        """Prepare a pass whose graph was captured, as far as the host goes."""
        key = self._key(forward_batch, in_capture=False)
        if key not in self._verify_wrappers:
            (wrapper,) = self._create_prefill_wrappers(key.slots, key.is_tree)
            wrapper._cached_module = SimpleNamespace(plan=lambda *_: None)
            self._verify_wrappers[key] = wrapper
        self.init_forward_metadata_out_graph(forward_batch)

    def _create_prefill_wrappers(self, bs: int, use_custom_mask: bool = False) -> list[Any]:
        tables = (indptr[0][: bs + 1] for indptr in (self.cuda_graph_qo_indptr, self.kv_indptr))
        return [Wrapper(use_custom_mask, *tables, self.cuda_graph_kv_indices[0])]

    @staticmethod
    def _pack(plan: Any, *, req_pool_indices: Any, seq_lens: Any, indptr: Any, out: Any, kind: Any) -> None:
        """Slot s of request r is 1000 r + s."""
        for request, length, start in zip(req_pool_indices.tolist(), seq_lens.tolist(), indptr.tolist(), strict=False):
            out[start : start + length] = 1000 * request + torch.arange(length)
