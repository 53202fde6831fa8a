"""Settings and a machine to one frozen `Resolved`: device, number format, and where the weights are.

Each process resolves once, in its `run`, and passes the value on. `sparktier up` writes it as the settings file of its
replicas. Nothing is left open in that file, so a replica's process resolves it to the same value on any node.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from sparktier.configs.errors import ConfigError
from sparktier.configs.rules.all import broken_rules
from sparktier.configs.settings.model import Dtype
from sparktier.configs.settings.settings import Settings
from sparktier.serving.deployment.model_source import local_weights

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Machine:
    """What a machine has. It is asked only what the settings leave open: torch takes seconds to load."""

    has_gpu: Callable[[], bool]
    has_bfloat16_units: Callable[[], bool]


def _gpu_is_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _bfloat16_units_are_here() -> bool:
    from sparktier.kernels import cpu_features

    return cpu_features.has_bfloat16_units()


THIS_MACHINE = Machine(_gpu_is_here, _bfloat16_units_are_here)
GPU_NODE = Machine(has_gpu=lambda: True, has_bfloat16_units=lambda: True)
"""The node that a plan of a deployment elsewhere is made for."""


@dataclass(frozen=True)
class Resolved:
    """Settings as the file has them, and what the machine made of the values that they leave open."""

    settings: Settings
    device: Device
    dtype: Dtype
    """`auto` is the checkpoint's own."""
    model: str
    """Folder of the weights, or the hub id that SGLang fetches."""
    draft: str | None
    """The same for the draft's; None without a draft that has a checkpoint of its own."""

    def as_file(self) -> dict[str, Any]:
        """Return the content of a settings file that resolves to the same on every machine."""
        content = self.settings.model_dump()
        content["replicas"]["device"] = self.device
        # The name that clients ask for would follow the path.
        content["model"] |= {
            "path": self.model,
            "dtype": self.dtype,
            "served_name": self.settings.model.public_name,
        }
        content["speculation"]["draft_path"] = self.draft
        return content


def resolve(
    settings: Settings, machine: Machine = THIS_MACHINE, *, progress: Callable[[str], None] = lambda _: None
) -> Resolved:
    """Return what `machine`, which has this one's files, makes of `settings`; builds the demo model where it is asked.

    `progress` gets a line for each stage of that.

    Raises:
        ConfigError: the settings can't run on the machine's device.
        ArtifactError: there is no checkpoint where one is named, the drafter is not this target's, or the method of
            speculation can't serve the target losslessly.
    """
    resolved = resolve_without_weights(settings, machine)
    model, draft = local_weights(settings, progress=progress)
    return replace(resolved, model=model, draft=draft)


def resolve_without_weights(settings: Settings, machine: Machine) -> Resolved:
    """Return what `machine` makes of `settings`, paths of weights as they are written: the files may be elsewhere.

    Raises:
        ConfigError: the settings can't run on the machine's device.
    """
    device = device_of(settings, machine)
    _require_runnable(settings, device)
    return Resolved(
        settings,
        device=device,
        dtype=dtype_of(settings, device, machine),
        model=settings.model.path,
        draft=settings.speculation.draft_path,
    )


def device_of(settings: Settings, machine: Machine) -> Device:
    """Return what `replicas.device` says, or for `auto` what `machine` has."""
    if settings.replicas.device != "auto":
        return settings.replicas.device
    return "cuda" if machine.has_gpu() else "cpu"


def dtype_of(settings: Settings, device: Device, machine: Machine) -> Dtype:
    """Return what `model.dtype` says, or float32 for `auto` on a CPU that is slow in bfloat16."""
    if settings.model.dtype == "auto" and device == "cpu" and not machine.has_bfloat16_units():
        return "float32"
    return settings.model.dtype


def _require_runnable(settings: Settings, device: Device) -> None:
    replicas = settings.replicas.model_copy(update={"device": device})
    if problems := broken_rules(settings.model_copy(update={"replicas": replicas})):
        raise ConfigError(problems)
