"""Linear layers on a CPU whose weights are converted to oneDNN's layout once.

torch's `F.linear` converts a plain weight on every call, which at decode sizes takes about as long as reading it. A
packed weight is read at the speed of memory (docs/log.md).
"""

from typing import Any

import torch
from torch.nn import functional as F

from sparktier.kernels.cpu_features import has_bfloat16_units

_PACKED_DTYPES = ({torch.float32} if torch._C._has_mkldnn else set()) | (
    {torch.bfloat16} if has_bfloat16_units() else set()
)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Return `weight` [out, in] for `linear`: an opaque copy in oneDNN's layout, or a view if packing gains nothing."""
    if weight.dtype not in _PACKED_DTYPES:
        return weight.detach()
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return packed


def linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear(x, weight, bias)` for `packed = pack(weight)`; x [..., in], result [..., out] of x's dtype."""
    if not packed.is_mkldnn:
        return F.linear(x, packed, bias)
    rows = x.shape[:-1].numel()
    padding = filled_rows(rows) - rows
    filled = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, padding)) if padding else x
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(filled, packed, bias, "none", [], "")
    return product[:rows].view(*x.shape[:-1], -1) if padding else product


def filled_rows(rows: int) -> int:
    """Return the number of rows to which a product of `rows` is padded: four sizes per doubling, every size up to 8.

    oneDNN compiles and keeps a kernel of 0.65 MB for each number of rows and weight shape, up to 1,024 kernels: with
    every number of rows a rank's memory would grow for hours.
    """
    step = max(1, (1 << (rows - 1).bit_length()) // 8)
    return -(-rows // step) * step


def install_cpu_linear(model: torch.nn.Module) -> int:
    """Make every unquantised linear layer of `model`, and its output head, compute with `linear`; return how many.

    The plain weights are kept beside the packed ones, because a draft model reads some of them directly. Changing
    weights in place afterwards has no effect.
    """
    from sglang.srt.layers.linear import LinearBase
    from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead

    installed = 0
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(layer, LinearBase) and isinstance(method, UnquantizedLinearMethod):
            method.apply = _PackedMethod(layer.weight, method).apply
        elif isinstance(layer, ParallelLMHead) and isinstance(method, UnquantizedEmbeddingMethod):
            # SGLang multiplies by `weight` itself, unless it does not know the method's class.
            layer.quant_method = _PackedMethod(layer.weight, method)
        else:
            continue
        installed += 1
    return installed


class _PackedMethod:
    """Replaces a layer's quantisation method; multiplies by the packed weight."""

    def __init__(self, weight: torch.Tensor, plain: Any) -> None:
        self._packed = pack(weight)
        self.embedding = getattr(plain, "embedding", None)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x, self._packed, bias)
