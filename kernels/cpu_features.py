"""Whether this CPU multiplies bfloat16 natively (AMX, AVX512-BF16)."""

import torch


def has_bfloat16_units() -> bool:
    """Return whether this CPU multiplies several rows in bfloat16 in about the time that one takes.

    Without such units (AVX2 alone, say) each row costs as much as reading the whole matrix, so that drafts never pay.
    """
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())
