"""Time of a decode step of the demo model on this CPU: our layers, SGLang's, and the naive expert loop, interleaved.

One process, one rank, the real SGLang model runner; only the layers' implementation changes from step to step. Prints
the floor beside it: bytes of active weights over the bandwidth measured in the same run. Run it alone: `make bench`.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparktier.configs.report import report_meta, write_report

os.environ.setdefault("SGLANG_EXTERNAL_MODEL_PACKAGE", "sparktier.serving.engine.models")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

PROMPT_TOKENS = 64
SEED = 0
KINDS = ("ours", "stock", "naive")
Apply = Callable[..., Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=30, help="counted steps of each kind")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    meta = report_meta("step_time", SEED)
    runner, layers = load_demo()
    bandwidth = read_bandwidth()
    rows = [row for batch in options.batches for row in measure(runner, layers, batch, options.steps, bandwidth)]
    for row in rows:
        print(row)
    if options.json:
        write_report(options.json, meta, rows)
    return 0


class Layers:
    """The two kinds of layers under test, and what each computes with."""

    def __init__(self, model: torch.nn.Module) -> None:
        from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

        from sparktier.serving.engine.cpu.linear import install_cpu_linear
        from sparktier.serving.engine.cpu.moe import install_cpu_moe

        self.model = model
        self.moe = [layer for layer in model.modules() if isinstance(layer, FusedMoE)]
        self.linear = [layer for layer in model.modules() if getattr(layer, "quant_method", None) is not None]
        self.linear = [layer for layer in self.linear if layer not in self.moe]
        self.weights = {layer: (layer.w13_weight.data.clone(), layer.w2_weight.data.clone()) for layer in self.moe}
        stock = self._state()
        install_cpu_moe(model)
        install_cpu_linear(model)
        ours = self._state()
        naive = {**stock, **{layer: (None, self._naive(layer)) for layer in self.moe}}
        self.states = {"ours": ours, "stock": stock, "naive": naive}
        self._packed = {layer: (layer.w13_weight.data, layer.w2_weight.data) for layer in self.moe}

    def _state(self) -> dict[Any, Any]:
        return {layer: (layer.quant_method, layer.quant_method.apply) for layer in [*self.moe, *self.linear]}

    def use(self, kind: str) -> None:
        """Compute with `kind` from now on."""
        for layer, (method, apply) in self.states[kind].items():
            if method is not None:
                layer.quant_method = method
            layer.quant_method.apply = apply
        for layer in self.moe:
            w13, w2 = self._packed[layer] if kind == "ours" else self.weights[layer]
            layer.w13_weight.data, layer.w2_weight.data = w13, w2

    def _naive(self, layer: Any) -> Apply:
        """One token and one expert at a time."""
        from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
        from torch.nn.functional import linear, silu

        w13, w2 = self.weights[layer]

        def apply(layer: Any, dispatch_output: Any) -> Any:
            hidden, topk = dispatch_output.hidden_states, dispatch_output.topk_output
            output = torch.zeros_like(hidden)
            for token in range(len(hidden)):
                for expert, weight in zip(topk.topk_ids[token].tolist(), topk.topk_weights[token], strict=True):
                    gate, up = linear(hidden[token], w13[expert]).chunk(2)
                    output[token] += weight.to(hidden.dtype) * linear(silu(gate) * up, w2[expert])
            return StandardCombineInput(hidden_states=output)

        return apply

    def active_bytes(self, batch: int) -> float:
        """Bytes of weights that one step reads, under even routing; the embedding is a gather."""
        total = sum(
            p.numel() * p.element_size() for name, p in self.model.named_parameters() if "embed_tokens" not in name
        )
        experts = sum(w.numel() * w.element_size() for pair in self.weights.values() for w in pair)
        named = sum(p.numel() * p.element_size() for layer in self.moe for p in (layer.w13_weight, layer.w2_weight))
        count, chosen = self.moe[0].num_experts, self.moe[0].top_k
        read_frac = 1.0 - (1.0 - chosen / count) ** batch
        return float(total - named + experts * read_frac)


def load_demo() -> tuple[Any, Layers]:
    """Return SGLang's model runner with the demo model as loaded, before our layers are put in."""
    from sglang.benchmark import one_batch
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import PortArgs, ServerArgs

    from sparktier.kernels.cpu_features import has_bfloat16_units
    from sparktier.serving.demo_model import ensure_demo_model
    from sparktier.serving.engine.cpu.platform import CpuPlatform

    load_plugins()
    CpuPlatform.post_load_model = lambda self, model: None  # type: ignore[method-assign]
    arguments = ServerArgs(
        model_path=str(ensure_demo_model(progress=print)), device="cpu",
        dtype="bfloat16" if has_bfloat16_units() else "float32", max_total_tokens=8192,
        disable_overlap_schedule=True, mem_fraction_static=0.3, max_running_requests=32, random_seed=SEED,
    )  # fmt: skip
    arguments.resolve_once()
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    one_batch._init_process_global_configs()
    runner, _ = one_batch.load_model(arguments, PortArgs.init_new(arguments), 0, 0)
    return runner, Layers(runner.torch_runner.model)


def measure(runner: Any, layers: Layers, batch: int, steps: int, bandwidth: float) -> list[dict[str, Any]]:
    """Return a row a kind: median and spread of `steps` steps each, taken in turn."""
    from sglang.benchmark.one_batch import prepare_synthetic_inputs_for_latency_test

    runner.clear()
    layers.use("ours")
    prompts = torch.randint(100, 10000, (batch, PROMPT_TOKENS), generator=torch.Generator().manual_seed(SEED)).tolist()
    requests = prepare_synthetic_inputs_for_latency_test(batch, PROMPT_TOKENS, prompts)
    for request in requests:
        request.rid = str(request.rid)  # SGLang's own benchmark numbers them; a server's are text
    tokens, _, running = runner.extend(requests)
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step in range(steps + 2):
        for kind in KINDS:
            layers.use(kind)
            started = time.perf_counter()
            tokens, _ = runner.decode(tokens, running)
            if step >= 2:
                taken[kind].append((time.perf_counter() - started) * 1000.0)
    floor_ms = layers.active_bytes(batch) / bandwidth * 1000.0
    medians = {kind: statistics.median(values) for kind, values in taken.items()}
    return [
        {
            "kind": kind,
            "batch": batch,
            "step_ms": round(medians[kind], 1),
            "step_ms_quartiles": [round(q, 1) for q in statistics.quantiles(taken[kind], n=4)[::2]],
            "ratio_to_naive": round(medians[kind] / medians["naive"], 3),
            "floor_ms": round(floor_ms, 1),
            "ratio_to_floor": round(medians[kind] / floor_ms, 2),
        }
        for kind in KINDS
    ]


def read_bandwidth() -> float:
    """Bytes a second that this process's threads read from memory: the best of five sums over 512 MiB."""
    data = torch.ones(128 << 20, dtype=torch.float32)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - started)
    print(f"memory bandwidth {data.numel() * 4 / best / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    return data.numel() * 4 / best


if __name__ == "__main__":
    sys.exit(main())
