"""FlashInfer's plan of a verify pass, made on the host without waiting for the device.

SGLang's `fast_prefill_plan` copies tables to where ours are written at once, and says nothing of equal rows; FlashInfer
then chooses tiles for the worst case that a graph of so many rows could meet.
"""

from typing import Any, NamedTuple

from torch import Tensor

_NO_SPLIT_SIZE, _NO_WINDOW = -1, -1


class HostPlan(NamedTuple):
    """Lengths that a plan is made by, int32 on the host.

    qo_indptr, kv_indptr [slots + 1]: where each slot's rows and keys begin; kv_lens [slots]: its keys.
    """

    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_lens: Tensor


def plan_on_host(wrapper: Any, heads: Any, lengths: HostPlan, *, equal_rows: int | None) -> None:
    """Plan a pass on `wrapper`, a paged prefill wrapper that was planned in full before.

    As SGLang's `fast_prefill_plan` does, whose graph reads the wrapper's buffers; those hold the pass's tables already.

    Args:
        wrapper: of a graph.
        heads: SGLang's, with the number of query and key heads, their size and types.
        lengths: of the pass, as in those tables.
        equal_rows: of each slot, if all have as many in every pass of this graph.
    """
    slots = len(lengths.kv_lens)
    wrapper._qo_indptr_last, wrapper._batch_size = int(lengths.qo_indptr[-1]), slots
    wrapper._max_q_len = int(lengths.qo_indptr.diff().max())
    wrapper._max_kv_len = int(lengths.kv_lens.max())
    wrapper._cached_q_data_type, wrapper._cached_kv_data_type = heads.q_data_type, heads.data_type
    wrapper._plan_info = wrapper._cached_module.plan(
        wrapper._float_workspace_buffer,
        wrapper._int_workspace_buffer,
        wrapper._pin_memory_int_workspace_buffer,
        *lengths,
        wrapper._max_total_num_rows,
        slots,
        heads.num_qo_heads,
        heads.num_kv_heads,
        1,  # page size
        True,  # inside a graph
        heads.head_dim,
        heads.head_dim,
        False,  # SGLang plans without `causal`, which its layers say themselves
        _NO_WINDOW,
        _NO_SPLIT_SIZE,
        False,  # long prefixes may be split
        0,  # CTAs of nothing else
        equal_rows or 0,
    )
