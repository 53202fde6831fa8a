"""Counts what a step would launch on a GPU, by phase, on fake CUDA tensors: no GPU is needed and nothing is computed.

A launch is one operator on a CUDA tensor that isn't a view, or one Triton kernel; a sort counts once. Whatever makes
the host wait for the device raises: reading a value back, finding places by a mask, and copies that block.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

# Operators that launch nothing though they are no views.
_FREE = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
    "device",
}
_READS_BACK = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}


SETUP = "setup"
# What is captured may not even start a copy from or to the host.
GRAPH = "in the draft's graph"


class WouldWait(AssertionError):
    """The host would wait for the device here."""


class Launches(TorchDispatchMode):
    """Counts launches while it is entered; tensors on the CPU are real, those on CUDA are fake."""

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._phases = [SETUP]
        self.by_phase: dict[str, Counter[str]] = {}

    def __enter__(self) -> "Launches":
        """Count until exit; a tensor made of Python's numbers is copied to the GPU where that can be counted."""
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        entered: Launches = super().__enter__()
        return entered

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, faking what is on CUDA."""
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        on_gpu = any(_is_cuda(value) for value in given)
        if not on_gpu:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if name in _READS_BACK or (name in {"index", "index_put_", "index_put"} and _by_mask(given)):
            self._wait(name)
        with self._fake:
            out = func(*args, **kwargs)
        is_copy = name in {"_to_copy", "copy_"} and _crosses(given, out)
        if is_copy and (self._phases[-1] == GRAPH or not _non_blocking(name, args, kwargs)):
            self._wait("a copy that blocks")
        if not func.is_view and name not in _FREE:
            self.note(name)
        return out

    def _wait(self, what: str) -> None:
        if self._phases[-1] != SETUP:
            raise WouldWait(f"{what}, in phase {self._phases[-1]!r}")

    def note(self, name: str) -> None:
        """Count one launch in the phase that is running."""
        self.by_phase.setdefault(self._phases[-1], Counter())[name] += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what the body launches as `name`'s; the innermost phase takes it, a graph all within it."""
        self._phases.append(GRAPH if self._phases[-1] == GRAPH else name)
        try:
            yield
        finally:
            self._phases.pop()

    def totals(self) -> dict[str, int]:
        """Return the number of launches of each phase that has any."""
        return {name: sum(counted.values()) for name, counted in self.by_phase.items()}

    def cuda(self, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Return a fake tensor on the GPU."""
        with self._fake:
            return torch.empty(shape, dtype=dtype, device="cuda")

    def watch(self, patch: pytest.MonkeyPatch, phases: dict[tuple[Any, str], str]) -> None:
        """Count Triton's kernels, and what each function `(owner, name)` launches as its phase's."""
        # Without a GPU: neither may ask for its driver.
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        torch._C._ensureCUDADeviceGuardSet()
        patch.setattr(JITFunction, "run", lambda kernel, *_, **__: self.note(kernel.__name__))
        for (owner, name), phase in phases.items():
            patch.setattr(owner, name, self._in_phase(getattr(owner, name), phase))

    def _in_phase(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase):
                return function(*args, **kwargs)

        return counted


def _is_cuda(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return isinstance(value, FakeTensor) and value.device.type == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


def _by_mask(given: list[Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.dtype == torch.bool for value in given[1:])


def _crosses(given: list[Any], out: torch.Tensor) -> bool:
    tensors = [value for value in given if isinstance(value, torch.Tensor)]
    return len({value.device.type for value in (*tensors, out)}) > 1


def _non_blocking(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking")) or (name == "copy_" and len(args) > 2 and bool(args[2]))
