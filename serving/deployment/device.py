"""What ranks run on, GPUs or this machine's CPUs, and in which number format."""

from sparktier.configs.settings.settings import Settings
from sparktier.serving.deployment.engine_args import Device


def resolve_device(settings: Settings) -> Device:
    """Return what `replicas.device` says, or for `auto` what this machine has."""
    if settings.replicas.device != "auto":
        return settings.replicas.device
    # Imported late: a named device needs no torch, which takes seconds to load.
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def with_dtype_of(settings: Settings, device: Device) -> Settings:
    """Return `settings` with float32 for a `model.dtype` of `auto` where `device` is a CPU that is slow in bfloat16."""
    if settings.model.dtype != "auto" or device != "cpu":
        return settings
    from sparktier.kernels.cpu_features import has_bfloat16_units

    if has_bfloat16_units():
        return settings
    return settings.model_copy(update={"model": settings.model.model_copy(update={"dtype": "float32"})})
