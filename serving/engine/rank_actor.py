"""One rank of a replica as a Ray actor: SGLang's own, with our plugin loaded and, on CPUs, its share of the cores.

SGLang's actor loads no plugins, so a registered algorithm or a hook would silently be missing there. Every rank
reports what it really runs; a replica is not ready until all of them have.
"""

import os
from collections.abc import Sequence
from typing import Any

import ray
import torch
from sglang.srt.ray.scheduler_actor import SchedulerActor

from sparktier.configs.errors import ReplicaError
from sparktier.serving.engine.telemetry.rank_state import RankReport


def core_share(gpu_id: int, *, cores: Sequence[int], ranks_on_node: int) -> list[int]:
    """Return the cores of the rank on logical GPU `gpu_id`: an equal share, or one core where ranks outnumber cores."""
    share = max(1, len(cores) // ranks_on_node)
    first = (gpu_id * share) % len(cores)
    return list(cores[first : first + share])


class Rank(SchedulerActor.__ray_actor_class__):  # type: ignore[name-defined, misc]
    """SGLang's scheduler rank with sparktier's plugin.

    Source: `sglang/srt/ray/scheduler_actor.py`; same constructor.
    """

    def __init__(self, **kwargs: Any) -> None:
        on_cpu = not torch.accelerator.is_available()
        if on_cpu:
            _take_cores()
        from sglang.srt.plugins import load_plugins

        from sparktier.serving.engine import plugin
        from sparktier.serving.engine.canary import watch
        from sparktier.serving.engine.plan import control
        from sparktier.serving.engine.telemetry.observer import Observer

        # Made where the replica was started, so on the first node alone.
        os.makedirs(os.environ["PROMETHEUS_MULTIPROC_DIR"], exist_ok=True)
        load_plugins()
        if not plugin.active():
            raise ReplicaError(
                f"The sparktier plugin must be active in every rank (rank {kwargs.get('tp_rank')} loaded none). "
                "SGLang's log of this rank has the reason; SGLANG_PLUGINS, if set, must name sparktier."
            )
        super().__init__(**kwargs)
        self._on_cpu = on_cpu
        control.watch_plan(self.scheduler)
        Observer(self.scheduler).install()
        watch.watch(self.scheduler)

    def run_event_loop(self) -> None:
        """Serve until shutdown. SGLang's own version selects a CUDA device first, which a CPU rank has not."""
        if self._on_cpu:
            self.scheduler.run_event_loop()
        else:
            super().run_event_loop()

    def report(self) -> RankReport:
        """Return what this rank is and holds: its place, plugin, threads, model and experts."""
        from sglang.srt.platforms import current_platform

        from sparktier.serving.engine import plugin

        return {
            "rank": self._tp_rank,
            "pid": os.getpid(),
            "node": ray.util.get_node_ip_address(),
            "plugin_active": plugin.active(),
            "platform": current_platform.device_name,
            "threads": torch.get_num_threads(),
            "vocab_size": self.scheduler.model_config.vocab_size,
            "context_tokens": self.scheduler.max_req_input_len,
            "token_characters": max(map(len, self.scheduler.tokenizer.get_vocab())),
            "draft_calibration": getattr(self.scheduler.draft_worker, "calibration", None),
            **_experts(self.scheduler.tp_worker.model_runner.model),
        }


def _take_cores() -> None:
    """Limit this process to its share of the node's cores, before torch or SGLang start threads.

    Two ranks with a thread per core each are ten times slower than with one thread each (they wait for each other in
    every all-reduce), so threads = cores / ranks.
    """
    cores = sorted(os.sched_getaffinity(0))
    gpu_ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    gpu_id = int(gpu_ids[0]) if gpu_ids else 0
    ranks_on_node = int(os.environ["SPARKTIER_RANKS_ON_NODE"])
    torch.set_num_threads(len(core_share(gpu_id, cores=cores, ranks_on_node=ranks_on_node)))
    # SGLang reads one group of cores per GPU id and refuses more ranks than NUMA nodes without it.
    groups = (core_share(gpu, cores=cores, ranks_on_node=ranks_on_node) for gpu in range(gpu_id + 1))
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, group)) for group in groups)


def _experts(model: torch.nn.Module) -> RankReport:
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    layers = [module for module in model.modules() if isinstance(module, FusedMoE)]
    if not layers:
        return {"moe_layers": 0, "experts": 0, "local_experts": []}
    first = layers[0]
    held = int(first.w13_weight.shape[0])
    start = int(first.moe_ep_rank) * held
    return {"moe_layers": len(layers), "experts": int(first.num_experts), "local_experts": [start, start + held - 1]}


class RankLauncher:
    """Stands in for SGLang's actor class in the launching process, and keeps what the ranks report.

    SGLang calls `.options(...).remote(...)` on it. The report is asked for right after creation, because an actor
    answers nothing more once it runs its event loop.
    """

    def __init__(self) -> None:
        self._pending: list[ray.ObjectRef] = []

    def options(self, **options: Any) -> "_RankFactory":
        """Return what SGLang then calls `remote` on."""
        return _RankFactory(options, self._pending)

    def reports(self, timeout_s: float) -> list[RankReport]:
        """Return every rank's report, by rank."""
        return sorted(ray.get(self._pending, timeout=timeout_s), key=lambda report: report["rank"])


class _RankFactory:
    def __init__(self, options: dict[str, Any], pending: list[ray.ObjectRef]) -> None:
        self._options = options
        self._pending = pending

    def remote(self, **kwargs: Any) -> Any:
        actor = ray.remote(Rank).options(**self._options).remote(**kwargs)
        self._pending.append(actor.report.remote())
        return actor
