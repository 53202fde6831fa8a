"""Machines that settings are resolved on, whatever this one has."""

from dataclasses import replace

from sparktier.configs.settings.settings import Settings
from sparktier.serving.deployment.resolved import GPU_NODE, Device, Machine, Resolved, resolve_without_weights

CPU_MACHINE = Machine(has_gpu=lambda: False, has_bfloat16_units=lambda: True)
SLOW_CPU_MACHINE = Machine(has_gpu=lambda: False, has_bfloat16_units=lambda: False)


def resolved_on(device: Device, settings: Settings, model: str | None = None) -> Resolved:
    """Return what a machine with `device` makes of `settings`; the weights are in `model`, or where they are named."""
    resolved = resolve_without_weights(settings, GPU_NODE if device == "cuda" else CPU_MACHINE)
    return replace(resolved, model=model or resolved.model)
