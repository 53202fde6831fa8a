"""Packed linear layers: the same products, in a bare function and inside SGLang's layers."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparktier.kernels.cpu_features import has_bfloat16_units
from sparktier.serving.engine.cpu.linear import filled_rows, install_cpu_linear, linear, pack
from support.sglang_rank import cpu_server_args, rank
from support.tiny_moe import make_tiny_moe


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_product_equals_plain(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, bias, x = (torch.randn(size, generator=generator).to(dtype) for size in ((48, 32), (48,), (rows, 32)))
    for term in (None, bias):
        want = torch.nn.functional.linear(x.double(), weight.double(), None if term is None else term.double())
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(linear(x, pack(weight), term).double(), want, rtol=tolerance, atol=tolerance)


def test_float32_is_packed_and_bfloat16_where_the_cpu_has_units_for_it() -> None:
    assert pack(torch.zeros(8, 8, dtype=torch.bfloat16)).is_mkldnn == has_bfloat16_units()
    assert pack(torch.zeros(8, 8)).is_mkldnn


def test_leading_dimensions_and_strides_are_kept() -> None:
    weight, wide = torch.randn(48, 32), torch.randn(3, 9, 64)
    for x in (wide[..., :32], wide[..., ::2], wide[:, :0, :32]):
        torch.testing.assert_close(linear(x, pack(weight)), x @ weight.T, rtol=1e-5, atol=1e-5)


def test_the_machine_multiplies_few_counts_of_rows() -> None:
    """oneDNN keeps a kernel for each, so that memory would grow with the variety of batches."""
    filled = [filled_rows(rows) for rows in range(2049)]
    assert all(count >= rows and count - rows <= rows / 4 for rows, count in enumerate(filled))
    assert filled == sorted(filled)
    assert len(set(filled)) <= 41
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator)
    counts: set[int] = set()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_linear_pointwise" in str(func):
                counts.add(args[0].shape[0])
            return func(*args, **(kwargs or {}))

    packed = pack(weight)
    with Counting():
        for rows in range(300):
            linear(torch.zeros(rows, 32), packed)
    assert counts == {filled_rows(rows) for rows in range(300)}


@pytest.fixture(scope="module")
def server_args(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cpu_server_args(make_tiny_moe(tmp_path_factory.mktemp("tiny")))


def test_every_linear_layer_and_the_head_are_packed(server_args: Any) -> None:
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.logits_processor import should_apply_lm_head_quant_method
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead

    generator = torch.Generator().manual_seed(1)
    with rank(server_args, 0, 1):
        layers = [
            ReplicatedLinear(32, out, bias=bias, params_dtype=torch.float32) for out, bias in ((64, True), (4, False))
        ]
        head = ParallelLMHead(128, 32, params_dtype=torch.float32)
    for parameter in [*layers[0].parameters(), *layers[1].parameters(), *head.parameters()]:
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn(3, 32, generator=generator)
    plain = [layer(x)[0] for layer in layers] + [x @ head.weight.T]
    assert install_cpu_linear(torch.nn.ModuleList([*layers, head, torch.nn.LayerNorm(32)])) == 3
    assert should_apply_lm_head_quant_method(head, head.quant_method)
    for weight in (layers[0].weight, layers[1].weight, head.weight):
        # What was packed is what multiplies from now on; the plain weight stays readable for a draft.
        assert weight.isfinite().all()
        weight.data.zero_()
    packed = [layer(x)[0] for layer in layers] + [head.quant_method.apply(head, x, None)]
    for got, want in zip(packed, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
