"""FlashInfer's plan of a pass whose requests have equal rows, made on the host without waiting for the device.

SGLang's `fast_prefill_plan` says nothing of equal rows; FlashInfer then chooses tiles for the worst case that a graph
of so many rows could meet.
"""

from typing import Any

from torch import Tensor

_NO_SPLIT_SIZE, _NO_WINDOW = -1, -1


def plan_equal_rows(
    wrapper: Any,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    last_page_len: Tensor,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    *,
    q_data_type: Any,
    kv_data_type: Any,
    non_blocking: bool,
    qo_indptr_host: Tensor,
    kv_indptr_host: Tensor,
    kv_lens_host: Tensor,
    max_q_len: int,
    max_kv_len: int,
    rows: int,
) -> None:
    """Plan a pass of `rows` rows a request on `wrapper`, a paged prefill wrapper that was planned in full before.

    As SGLang's `fast_prefill_plan`, which has the other arguments. Tensors on the device are copied into the buffers
    that a graph reads, where they are not those buffers already; those named host are int32.
    """
    for buffer, values in (
        (wrapper._qo_indptr_buf, qo_indptr),
        (wrapper._paged_kv_indptr_buf, kv_indptr),
        (wrapper._paged_kv_last_page_len_buf, last_page_len),
        (wrapper._paged_kv_indices_buf[: len(kv_indices)], kv_indices),
    ):
        if buffer.data_ptr() != values.data_ptr():
            buffer.copy_(values, non_blocking=non_blocking)
    wrapper._qo_indptr_last = int(qo_indptr_host[-1])
    wrapper._batch_size, wrapper._max_q_len, wrapper._max_kv_len = len(last_page_len), max_q_len, max_kv_len
    wrapper._cached_q_data_type, wrapper._cached_kv_data_type = q_data_type, kv_data_type
    wrapper._plan_info = wrapper._cached_module.plan(
        wrapper._float_workspace_buffer,
        wrapper._int_workspace_buffer,
        wrapper._pin_memory_int_workspace_buffer,
        qo_indptr_host,
        kv_indptr_host,
        kv_lens_host,
        wrapper._max_total_num_rows,
        len(last_page_len),
        num_qo_heads,
        num_kv_heads,
        page_size,
        True,  # inside a graph
        head_dim,
        head_dim,
        False,  # SGLang plans without `causal`, which its layers say themselves
        _NO_WINDOW,
        _NO_SPLIT_SIZE,
        False,  # long prefixes may be split
        0,  # CTAs of nothing else
        rows,
    )
