"""Expert-parallel mixture-of-experts layers on a CPU: tokens grouped by expert, two matrix products per expert.

SGLang's own torch version (`sglang/srt/layers/moe/fused_moe_native.py`) counts by global expert id and fails on the -1
that its dispatcher writes for another rank's experts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from sparktier.configs.errors import ConfigError, Problem
from sparktier.serving.engine.cpu.linear import linear, pack

Expert = tuple[torch.Tensor, torch.Tensor]


def pack_experts(w13: torch.Tensor, w2: torch.Tensor) -> list[Expert]:
    """Return one (gate and up, down) pair per local expert, as `moe_forward` reads them.

    `w13` [experts, 2 * intermediate, hidden] holds gate above up; `w2` is [experts, hidden, intermediate].
    """
    return [(pack(gate_up), pack(down)) for gate_up, down in zip(w13, w2, strict=True)]


def moe_forward(
    hidden: torch.Tensor, experts: Sequence[Expert], topk_ids: torch.Tensor, topk_weights: torch.Tensor
) -> torch.Tensor:
    """Return this rank's share of the layer's output, [tokens, hidden] in hidden's dtype.

    `hidden` [tokens, hidden]; `topk_ids` [tokens, k] integer local expert ids, -1 for an expert of another rank;
    `topk_weights` [tokens, k]. Weighted sums are float32. Weights of experts without tokens are not read; the Python
    loop runs once per chosen expert, not per token.
    """
    flat = topk_ids.flatten()
    by_expert = flat.argsort()
    elsewhere, *counts = torch.bincount(flat + 1, minlength=len(experts) + 1).tolist()
    chosen = by_expert[elsewhere:]
    total = torch.zeros(hidden.shape, dtype=torch.float32)
    if not len(chosen):
        return total.to(hidden.dtype)
    rows = chosen // topk_ids.shape[1]
    groups = torch.split(hidden[rows], counts)
    outputs = [_expert(group, *expert) for group, expert in zip(groups, experts, strict=True) if len(group)]
    weighted = torch.cat(outputs) * topk_weights.flatten()[chosen, None].float()
    return total.index_add_(0, rows, weighted).to(hidden.dtype)


def _expert(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate).mul_(up), down)


def install_cpu_moe(model: torch.nn.Module) -> int:
    """Make every FusedMoE layer of `model` compute with `moe_forward`; return how many there are.

    The layers' own expert weights are freed, so that memory holds them once. Raises ConfigError if a layer needs
    something that `moe_forward` does not do.
    """
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    layers = [module for module in model.modules() if isinstance(module, FusedMoE)]
    if problems := [problem for layer in layers[:1] for problem in _unsupported(layer)]:
        raise ConfigError(problems)
    for layer in layers:
        _install(layer)
    return len(layers)


def _install(layer: Any) -> None:
    from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput

    experts = pack_experts(layer.w13_weight, layer.w2_weight)
    if experts[0][0].is_mkldnn:
        for weight in (layer.w13_weight, layer.w2_weight):
            # A shape without storage: a later read gives NaN, a later write fails.
            weight.data = weight.new_full((), torch.nan).expand(weight.shape)

    def apply(layer: Any, dispatch_output: Any) -> Any:
        topk = dispatch_output.topk_output
        output = moe_forward(dispatch_output.hidden_states, experts, topk.topk_ids, topk.topk_weights)
        return StandardCombineInput(hidden_states=output)

    layer.quant_method.apply = apply


def _unsupported(layer: Any) -> list[Problem]:
    """Return what SGLang's GPU kernels would do in this layer and `moe_forward` would silently omit."""
    from sglang.srt.layers.moe.token_dispatcher import StandardDispatcher
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

    config = layer.moe_runner_config
    wrong = {
        f"quantisation {type(layer.quant_method).__name__}": not isinstance(
            layer.quant_method, UnquantizedFusedMoEMethod
        ),
        f"activation {config.activation}": config.activation != "silu" or not config.is_gated,
        "expert biases": hasattr(layer, "w13_weight_bias") or hasattr(layer, "w2_weight_bias"),
        "router weights on the input": config.apply_router_weight_on_input,
        "uncombined output": config.no_combine,
        f"routed scaling {config.routed_scaling_factor}": config.routed_scaling_factor not in (None, 1.0),
        "a clamped or scaled activation": any(
            value is not None
            for value in (config.gemm1_alpha, config.gemm1_beta, config.gemm1_clamp_limit, config.swiglu_limit)
        ),
        "fused shared experts": bool(config.num_fused_shared_experts),
        f"dispatch by {type(layer.dispatcher).__name__}": not isinstance(layer.dispatcher, StandardDispatcher),
    }
    return [
        Problem(
            "model.path",
            "a MoE model on a CPU has plain gated SiLU experts and no all-to-all backend",
            found,
            "Serve it on GPUs.",
        )
        for found, is_wrong in wrong.items()
        if is_wrong
    ]
