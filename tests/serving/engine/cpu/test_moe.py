"""The grouped MoE forward against a loop over tokens in float64, alone and inside SGLang's own layer."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.configs.errors import ConfigError
from sparktier.serving.engine.cpu.moe import install_cpu_moe, moe_forward, pack_experts
from support.sglang_rank import cpu_server_args, rank
from support.tiny_moe import make_tiny_moe

HIDDEN, INTERMEDIATE = 32, 64


def one_token_at_a_time(
    hidden: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The definition: sum over a token's local experts of weight * down(silu(gate) * up), in float64."""
    hidden, w13, w2, weights = (tensor.double() for tensor in (hidden, w13, w2, weights))
    out = torch.zeros_like(hidden)
    for token in range(hidden.shape[0]):
        for slot in range(ids.shape[1]):
            expert = int(ids[token, slot])
            if expert >= 0:
                gate, up = (w13[expert] @ hidden[token]).chunk(2)
                out[token] += weights[token, slot] * (w2[expert] @ (gate * torch.sigmoid(gate) * up))
    return out


def weights_of(experts: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w13 = torch.randn(experts, 2 * INTERMEDIATE, HIDDEN, generator=generator) / HIDDEN**0.5
    w2 = torch.randn(experts, HIDDEN, INTERMEDIATE, generator=generator) / INTERMEDIATE**0.5
    return w13.to(dtype), w2.to(dtype)


@st.composite
def routings(draw: st.DrawFn) -> tuple[int, torch.Tensor]:
    """Number of local experts, and ids [tokens, k] of which any may be -1, even all of a row or of the batch."""
    experts, k = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    ids = draw(st.lists(st.lists(st.integers(-1, experts - 1), min_size=k, max_size=k), max_size=20))
    return experts, torch.tensor(ids, dtype=draw(st.sampled_from([torch.int32, torch.int64]))).view(len(ids), k)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@given(routing=routings(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_equals_the_definition(
    dtype: torch.dtype, tolerance: float, routing: tuple[int, torch.Tensor], seed: int
) -> None:
    experts, ids = routing
    w13, w2 = weights_of(experts, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ids.shape[0], HIDDEN, generator=generator).to(dtype)
    weights = torch.rand(ids.shape, generator=generator)
    got = moe_forward(hidden, pack_experts(w13, w2), ids, weights)
    assert got.dtype == dtype
    want = one_token_at_a_time(hidden, w13, w2, ids, weights)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tokens", [1, 16, 512])
def test_ranks_together_give_the_whole(tokens: int) -> None:
    """Two ranks of 4 experts each sum to one rank of 8."""
    w13, w2 = weights_of(8, torch.float32, seed=1)
    hidden = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(2))
    ids = torch.rand(tokens, 8, generator=torch.Generator().manual_seed(3)).topk(2).indices
    weights = torch.rand(tokens, 2, generator=torch.Generator().manual_seed(4))
    whole = moe_forward(hidden, pack_experts(w13, w2), ids, weights)
    halves = [
        moe_forward(
            hidden,
            pack_experts(w13[first : first + 4], w2[first : first + 4]),
            torch.where((ids >= first) & (ids < first + 4), ids - first, -1),
            weights,
        )
        for first in (0, 4)
    ]
    torch.testing.assert_close(halves[0] + halves[1], whole, rtol=1e-5, atol=1e-5)


def test_unchosen_experts_are_not_read() -> None:
    """An expert of NaN would spoil the output even at weight zero."""
    w13, w2 = weights_of(4, torch.float32, seed=1)
    w13[2], w2[2] = torch.nan, torch.nan
    ids = torch.tensor([[0, 1], [3, -1], [-1, -1]])
    out = moe_forward(torch.ones(3, HIDDEN), pack_experts(w13, w2), ids, torch.ones(3, 2))
    assert out.isfinite().all()
    assert not out[2].any()


@pytest.fixture(scope="module")
def server_args(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cpu_server_args(make_tiny_moe(tmp_path_factory.mktemp("tiny")))


def sglang_layer(dtype: torch.dtype, ep_rank: int, ep_size: int, **options: Any) -> Any:
    """A real FusedMoE of 8 experts, of which this rank holds its share of the same weights."""
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    layer = FusedMoE(
        num_experts=8,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        layer_id=0,
        top_k=2,
        params_dtype=dtype,
        **options,
    )
    share = slice(ep_rank * 8 // ep_size, (ep_rank + 1) * 8 // ep_size)
    for parameter, whole in zip((layer.w13_weight, layer.w2_weight), weights_of(8, dtype, seed=9), strict=True):
        parameter.data.copy_(whole[share])
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ep_size", [1, 2, 4])
def test_inside_sglangs_layer(server_args: Any, dtype: torch.dtype, ep_size: int) -> None:
    """Global ids go through SGLang's dispatcher; the ranks' outputs sum to the definition."""
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(20, HIDDEN, generator=generator).to(dtype)
    scores, ids = torch.rand(20, 8, generator=generator).topk(2)
    total = torch.zeros(20, HIDDEN, dtype=torch.float64)
    for ep_rank in range(ep_size):
        with rank(server_args, ep_rank, ep_size):
            layer = sglang_layer(dtype, ep_rank, ep_size)
            assert install_cpu_moe(torch.nn.ModuleList([layer])) == 1
            total += layer(hidden, StandardTopKOutput(scores, ids.int(), torch.zeros(20, 8))).double()
    want = one_token_at_a_time(hidden, *weights_of(8, dtype, seed=9), ids, scores)
    torch.testing.assert_close(total, want, rtol=3e-2, atol=3e-2 if dtype == torch.bfloat16 else 1e-5)


def test_packed_weights_are_held_once(server_args: Any) -> None:
    with rank(server_args, 0, 1):
        layer = sglang_layer(torch.float32, 0, 1)
        install_cpu_moe(layer)
    assert layer.w13_weight.shape == (8, 2 * INTERMEDIATE, HIDDEN)
    assert layer.w13_weight.isnan().all()
    with pytest.raises(RuntimeError):
        layer.w13_weight.copy_(torch.zeros(8, 2 * INTERMEDIATE, HIDDEN))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"activation": "gelu"}, "activation gelu"),
        ({"apply_router_weight_on_input": True}, "router weights"),
        ({"routed_scaling_factor": 2.5}, r"routed scaling 2\.5"),
        ({"with_bias": True}, "biases"),
        ({"gemm1_alpha": 1.7, "gemm1_clamp_limit": 7.0}, "clamped"),
    ],
)
def test_what_it_does_not_do_is_refused(server_args: Any, options: dict[str, Any], named: str) -> None:
    with rank(server_args, 0, 1):
        layer = sglang_layer(torch.float32, 0, 1, **options)
        with pytest.raises(ConfigError, match=named):
            install_cpu_moe(layer)
