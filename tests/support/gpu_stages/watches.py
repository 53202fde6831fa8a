"""What is looked at while an engine steps: which graphs it replays, what it launches, which experts it reads.

Installed before the engine is made, as SGLang binds methods while it loads a model.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from support.gpu_stages.stage_a import events

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
_REPLAYS = 50


class Watches:
    """Off until asked; costs a step nothing but a test of a flag."""

    def __init__(self) -> None:
        self._replayed: list[tuple[Any, Any]] | None = None
        self._experts: dict[int, set[int]] | None = None

    def install(self) -> None:
        """Watch the models and graphs that this process makes from now on; for good."""
        from sglang.srt.layers.moe import topk
        from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend

        topk.select_experts = self._noting_experts(topk.select_experts)
        stock = FullCudaGraphBackend.replay

        def replay(backend: Any, key: Any, *rest: Any, **more: Any) -> Any:
            if self._replayed is not None:
                self._replayed.append((backend, key))
            return stock(backend, key, *rest, **more)

        FullCudaGraphBackend.replay = replay

    def _noting_experts(self, stock: Any) -> Any:
        def select(*args: Any, layer_id: int | None = None, **kwargs: Any) -> Any:
            chosen = stock(*args, layer_id=layer_id, **kwargs)
            if self._experts is not None and layer_id is not None:
                self._experts.setdefault(layer_id, set()).update(chosen.topk_ids.flatten().tolist())
            return chosen

        return select

    @contextmanager
    def graphs(self) -> Iterator[list[tuple[Any, Any]]]:
        """Yield what the body replays, in order: SGLang's backend and its key."""
        self._replayed = found = []
        try:
            yield found
        finally:
            self._replayed = None

    @contextmanager
    def experts(self) -> Iterator[dict[int, set[int]]]:
        """Yield the experts that the body's eager passes choose, by layer."""
        self._experts = found = {}
        try:
            yield found
        finally:
            self._experts = None


def bare_replays(replayed: list[tuple[Any, Any]], draft: Any) -> list[dict[str, Any]]:
    """Return GPU ms of each graph alone, over 50 replays; `draft` is the draft's graph runner, None without one."""
    found = []
    for backend, key in replayed:
        graph = backend._graphs[key]
        torch.cuda.synchronize()
        begun, ended = events()
        begun.record()
        for _ in range(_REPLAYS):
            graph.replay()
        ended.record()
        torch.cuda.synchronize()
        is_draft = draft is not None and backend is getattr(draft, "backend", None)
        found.append(
            {"of": "draft" if is_draft else "target", "key": str(key), "gpu_ms": begun.elapsed_time(ended) / _REPLAYS}
        )
    return found


def calls_of(profile: Any) -> dict[str, int]:
    """Return how often the profiled code launched something, and how often its host waited."""
    counted: Counter[str] = Counter()
    for event in profile.key_averages():
        for kind, names in (("launches", _LAUNCHES), ("waits", _WAITS)):
            counted[kind] += event.count if event.key.startswith(names) else 0
    return {"launches": counted["launches"], "waits": counted["waits"]}
