"""Measures one engine in cells, in a process of its own: ours by rung, SGLang without drafts, or SGLang's own DSPARK.

`python -m support.gpu_stages.engine_cells --engine ours --shape qwen3-30b-a3b --out FILE`. Weights are random, tokens
and acceptance scripted (script.py). Requests are prefilled once for a load and stay while rungs change, in SGLang's own
scheduler loop. What comes out is the time of steps at a stated acceptance, not a real model's speed-up.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from sparktier.configs.loading.loader import settings_from
from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.serving.deployment.engine_args import engine_kwargs
from sparktier.serving.deployment.resolved import THIS_MACHINE, Machine, resolve_without_weights
from sparktier.serving.engine.stepping import Place, SteppedEngine
from sparktier.serving.supervision.processes import held_port
from sparktier.serving.supervision.replica_process import rank_env
from support.gpu_stages import machine
from support.gpu_stages.results import Results
from support.gpu_stages.script import GSM8K, Script, follow
from support.gpu_stages.shapes import SHAPES, ModelShape
from support.gpu_stages.watches import Watches, bare_replays, calls_of

STAGE, SEED = "C", 20261128
ENGINES = ("ours", "plain", "native")
Course = Generator[None, None, None]


@dataclass(frozen=True)
class Load:
    """So many users whose prompts have so many tokens."""

    users: int
    context: int


@dataclass(frozen=True)
class Extent:
    """How much is measured: loads, steps of a cell after so many to warm up, and rows of trees."""

    loads: tuple[Load, ...]
    steps: int
    warm_steps: int
    tree_rows: int = 12
    new_tokens: int = 6000


FULL = Extent(
    (Load(1, 1024), Load(4, 1024), Load(16, 1024), Load(64, 512), Load(1, 8192), Load(4, 8192), Load(8, 8192)), 100, 10
)
DRY = Extent((Load(1, 20), Load(3, 30)), 8, 2, new_tokens=400)


def engine_arguments(
    engine: str, shape: ModelShape, folder: Path, extent: Extent, here: Machine = THIS_MACHINE
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return SGLang's arguments and the environment of `engine`, its configs written under `folder`."""
    target, draft = shape.write(folder)
    users = max(load.users for load in extent.loads)
    context = max(load.context for load in extent.loads) + extent.new_tokens + 64
    method = {"ours": "tree", "plain": "none", "native": "dspark_native"}[engine]
    speculation: dict[str, Any] = {"method": method}
    if engine != "plain":
        speculation["draft_path"] = str(draft)
    if engine == "ours":
        speculation["tree_rows"] = extent.tree_rows
    if engine == "native":
        speculation["verification"] = "static"
    # One backend for all engines: a tree's mask needs this one.
    attention = "flashinfer" if here.has_gpu() else None
    settings = settings_from(
        {
            "model": {"path": str(target), "context_tokens": context},
            "replicas": {"max_running_requests": users, "attention_backend": attention},
            "speculation": speculation,
        }
    )
    resolved = resolve_without_weights(settings, here)
    arguments = engine_kwargs(resolved, replica=0) | {"load_format": "dummy", "skip_tokenizer_init": True}
    if engine != "plain":
        arguments["speculative_draft_load_format"] = "dummy"
    return arguments, rank_env(resolved)


def random_weights(model: torch.nn.Module, *_: Any, **__: Any) -> None:
    """Fill `model` with numbers of a trained model's size: SGLang's dummies make norms of a thousandth."""
    for number, (name, values) in enumerate(model.state_dict().items()):
        if not torch.is_floating_point(values):
            continue
        if "norm" in name:
            values.fill_(1.0)
            continue
        generator = torch.Generator(device=values.device).manual_seed(SEED + number)
        values.normal_(0.0, 0.02, generator=generator)


class Session:
    """An engine, and the cells that are measured in one run of its scheduler's loop."""

    def __init__(self, name: str, engine: SteppedEngine, results: Results, extent: Extent, watches: Watches) -> None:
        self._name, self._engine, self._results, self._extent = name, engine, results, extent
        self._watches, self._rng = watches, random.Random(SEED)
        self._vocab = engine.scheduler.model_config.vocab_size
        self._is_gpu = engine.scheduler.device != "cpu"

    def run(self, until_s: float) -> None:
        """Measure what is missing, then count experts, until the time is over."""
        scheduler, course = self._engine.scheduler, self._course(until_s)

        def turn(*_: Any, **__: Any) -> list[Any]:
            if next(course, self) is self:
                scheduler.gracefully_exit = True
            return []

        scheduler.ingest_requests = turn
        scheduler.run_event_loop()

    def _course(self, until_s: float) -> Course:
        for measured in (self._timed, self._experts):
            for load in self._extent.loads:
                cells = [cell for cell in self._cells(load, measured) if not self._results.has(STAGE, cell)]
                if cells and time.monotonic() < until_s:
                    yield from self._of_load(load, cells, measured, until_s)

    def _cells(self, load: Load, measured: Any) -> list[dict[str, Any]]:
        rungs = [rung.name.lower() for rung in Rung] if self._name == "ours" else [self._name]
        what = "steps" if measured == self._timed else "experts"
        repeats = 2 if what == "steps" else 1
        cells = [
            {
                "engine": self._name,
                "rung": rung,
                "users": load.users,
                "context": load.context,
                "what": what,
                "repeat": n,
            }
            for n in range(repeats)
            for rung in rungs
        ]
        return self._rng.sample(cells, len(cells))

    def _of_load(self, load: Load, cells: Sequence[dict[str, Any]], measured: Any, until_s: float) -> Course:
        """Prefill the requests of `load`, measure its cells, and end them."""
        scheduler = self._engine.scheduler
        for number in range(load.users):
            prompt = [self._rng.randrange(self._vocab) for _ in range(load.context)]
            name = f"{load}-{number}-{self._rng.random()}"
            self._engine.add(name, prompt, new_tokens=self._extent.new_tokens, cache_key=name)
        while len(scheduler.running_batch.reqs) < load.users or scheduler.waiting_queue:
            yield
        for cell in cells:
            if time.monotonic() >= until_s:
                break
            figures = yield from measured(cell)
            if len(scheduler.running_batch.reqs) != load.users:
                figures = {"error": f"{load.users} users did not stay: too little memory, or too few new tokens"}
            self._results.add(STAGE, cell, figures)
        self._abort()
        while scheduler.running_batch.reqs:
            yield

    def _abort(self) -> None:
        from sglang.srt.managers.io_struct import AbortReq

        self._engine.scheduler.abort_request(AbortReq(rid="", abort_all=True))

    def _on(self, cell: dict[str, Any]) -> Course:
        """Step on the cell's rung until what it launches is that rung's."""
        if self._name == "ours":
            self._engine.worker.set_plan(EnginePlan(rung=Rung[cell["rung"].upper()]))
        for _ in range(self._extent.warm_steps):
            yield

    def _timed(self, cell: dict[str, Any]) -> Generator[None, None, dict[str, Any]]:
        yield from self._on(cell)
        before, stamps = self._tokens(), [time.perf_counter()]
        for _ in range(self._extent.steps):
            yield
            stamps.append(time.perf_counter())
        tokens = (self._tokens() - before) / (self._extent.steps * cell["users"])
        took = [(end - begin) * 1000.0 for begin, end in pairwise(stamps)]
        figures = {
            "step_ms": (stamps[-1] - stamps[0]) * 1000.0 / len(took),
            "step_ms_p50": statistics.median(took),
            "step_ms_p95": statistics.quantiles(took, n=20)[-1],
            "tokens_a_step": tokens,
        }
        figures["tok_s_user"] = 1000.0 * tokens / figures["step_ms"]
        if self._is_gpu:
            figures |= yield from self._on_the_gpu()
        return figures

    def _on_the_gpu(self) -> Generator[None, None, dict[str, Any]]:
        """Launches and waits of a step, and GPU ms of each graph that it replays."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            yield
        with self._watches.graphs() as replayed:
            yield
        runner = getattr(self._engine.worker, "draft_model_runner", None)
        graphs = bare_replays(replayed, getattr(runner, "decode_cuda_graph_runner", None))
        return {**calls_of(profiled), "graphs": graphs, "graphs_ms": sum(each["gpu_ms"] for each in graphs)}

    def _experts(self, cell: dict[str, Any]) -> Generator[None, None, dict[str, Any]]:
        """Distinct experts of a layer in one eager pass, drafts of a step included as rows."""
        yield from self._on(cell)
        with self._eagerly(), self._watches.experts() as found:
            yield
        counts = [len(experts) for experts in found.values()] or [0]
        return {"experts_a_layer": statistics.mean(counts), "layers": len(found)}

    @contextmanager
    def _eagerly(self) -> Iterator[None]:
        worker = self._engine.scheduler.tp_worker
        graphs = worker.model_runner.decode_cuda_graph_runner
        with mock.patch.object(graphs, "can_run_graph", return_value=False) if graphs is not None else nullcontext():
            yield

    def _tokens(self) -> int:
        return sum(len(request.output_ids) for request in self._engine.scheduler.running_batch.reqs)


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--dry-run", action="store_true", help="few steps of few users, on a CPU too")
    options = parser.parse_args()
    until_s = time.monotonic() + 60.0 * options.minutes
    shape, extent = SHAPES[options.shape], DRY if options.dry_run else FULL
    results = Results(options.out, machine.meta())
    if options.engine == "native" and not torch.cuda.is_available():
        from support.probes.native_probe import runs_on_cpus

        runs_on_cpus()
    with tempfile.TemporaryDirectory() as folder, held_port() as port:
        arguments, environment = engine_arguments(options.engine, shape, Path(folder), extent)
        engine, watches = start(shape, arguments, environment, port)
        Session(options.engine, engine, results, extent, watches).run(until_s)
        # SGLang's threads keep the process.
        sys.stdout.flush()
    os._exit(0)


def start(
    shape: ModelShape, arguments: dict[str, Any], environment: dict[str, str], port: int
) -> tuple[SteppedEngine, Watches]:
    """Return an engine of random weights whose models follow the script, and what watches it."""
    from sglang.srt.model_loader import loader

    device = torch.device("cuda" if arguments["device"] == "cuda" else "cpu")
    os.environ.update(environment)
    positions = 1 << (int(arguments["context_length"]) - 1).bit_length()
    follow(Script(GSM8K, vocab=shape.vocab, positions=positions, seed=SEED, device=device))
    watches = Watches()
    watches.install()
    loader.initialize_dummy_weights = random_weights
    return SteppedEngine(arguments, environment, Place(0, 1, port)), watches


if __name__ == "__main__":
    sys.exit(main())
