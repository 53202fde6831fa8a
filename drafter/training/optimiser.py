"""The optimiser of a training run: Muon for the matrices inside the draft's layers, AdamW for the rest.

Owns both optimisers and the moments that a resumed run needs. Muon steps by the orthogonal part of a matrix's momentum
(Jordan 2024); its steps have AdamW's size (Liu et al. 2025, arXiv 2502.16982), so one learning rate serves both.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sparktier.kernels.cpu_features import has_bfloat16_units

_INSIDE = ("layers.", "fc.")
_MATRIX_MOMENTS = ("momentum_buffer",)
_OTHER_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimiser:
    """Steps named fp32 parameters by their gradients."""

    def __init__(self, parameters: Mapping[str, Tensor], weight_decay: float) -> None:
        inside = {name: value for name, value in parameters.items() if name.startswith(_INSIDE) and value.ndim == 2}
        others = {name: value for name, value in parameters.items() if name not in inside}
        muon = torch.optim.Muon(
            list(inside.values()), weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        adamw = torch.optim.AdamW(list(others.values()), weight_decay=weight_decay, fused=True)
        self._parts: list[tuple[torch.optim.Optimizer, dict[str, Tensor], tuple[str, ...]]] = [
            (muon, inside, _MATRIX_MOMENTS),
            (adamw, others, _OTHER_MOMENTS),
        ]
        on_cpu = all(value.device.type == "cpu" for value in parameters.values())
        self._slow_in_bfloat16 = on_cpu and not has_bfloat16_units()

    def step(self, learning_rate: float) -> None:
        """Step by the current gradients, and drop them."""
        for optimiser, _, _ in self._parts:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            with _InFloat32() if self._slow_in_bfloat16 else nullcontext():
                optimiser.step()
            optimiser.zero_grad()

    @property
    def moment_names(self) -> frozenset[str]:
        """Return the keys of `moments`, each `<moment>.<parameter>`."""
        return frozenset(
            f"{kind}.{name}" for _, parameters, kinds in self._parts for name in parameters for kind in kinds
        )

    def moments(self) -> dict[str, Tensor]:
        """Return the moments for `restore`; empty before the first step."""
        return {
            f"{kind}.{name}": optimiser.state[value][kind]
            for optimiser, parameters, kinds in self._parts
            for name, value in parameters.items()
            for kind in kinds
        }

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Take over the moments of a run that finished `step` steps; `moment_names` says which."""
        for optimiser, parameters, kinds in self._parts:
            for name, value in parameters.items():
                found = {kind: moments[f"{kind}.{name}"].to(value.device) for kind in kinds}
                optimiser.state[value] = {"step": torch.tensor(float(step)), **found}


class _InFloat32(TorchFunctionMode):
    """Lets `torch.optim.Muon` orthogonalise in fp32; its own cast to bf16 makes that 36 times as slow on AVX2 alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A copy in any case, as a cast makes one: Muon scales it in place, and it may be the momentum itself.
        return args[0].clone() if func is Tensor.bfloat16 else func(*args, **(kwargs or {}))
