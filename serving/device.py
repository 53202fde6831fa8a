"""Whether ranks run on GPUs or on this machine's CPUs. Knows nothing of what they run."""

from sparktier.configs.settings import Settings
from sparktier.serving.engine_args import Device


def resolve_device(settings: Settings) -> Device:
    """Return what `replicas.device` says, or for `auto` what this machine has."""
    if settings.replicas.device != "auto":
        return settings.replicas.device
    # Imported late: a named device needs no torch, which takes seconds to load.
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
