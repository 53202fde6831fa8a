"""Packed linear layers: the same products, in a bare function and inside SGLang's layers."""

from typing import Any

import pytest
import torch

from sparktier.kernels.cpu_units import has_bfloat16_units
from sparktier.serving.engine import cpu_linear
from sparktier.serving.engine.cpu_linear import install_cpu_linear, linear, pack
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


def test_bfloat16_is_packed_where_the_cpu_has_units_for_it_and_float32_never() -> None:
    assert pack(torch.zeros(8, 8, dtype=torch.bfloat16)).is_mkldnn == has_bfloat16_units()
    assert not pack(torch.zeros(8, 8)).is_mkldnn


@pytest.fixture(scope="module")
def server_args(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cpu_server_args(make_tiny_moe(tmp_path_factory.mktemp("tiny")))


def test_every_linear_layer_and_the_head_are_packed(server_args: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.logits_processor import should_apply_lm_head_quant_method
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead

    # Every CPU can; bfloat16 some alone.
    monkeypatch.setattr(cpu_linear, "_PACKED_DTYPES", {torch.float32})
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
