"""Which table of step times is a deployment's own: weights' digests, machine, number format, ranks and versions."""

import os
from importlib.metadata import version
from pathlib import Path

from sparktier.configs.report import processor
from sparktier.configs.step_times import TableKey
from sparktier.drafter.model.weights import weights_sha256
from sparktier.serving.deployment.resolved import Resolved


def table_key(resolved: Resolved) -> TableKey:
    """Return the key of a deployment on this machine. Reads all weights, so it takes as long as their digest.

    Raises:
        ArtifactError: the weights are not in a folder of this machine.
    """
    replicas = resolved.settings.replicas
    return TableKey(
        model_sha256=weights_sha256(Path(resolved.model)),
        draft_sha256=weights_sha256(Path(resolved.draft)) if resolved.draft else None,
        device=_device_name(resolved),
        dtype=resolved.dtype,
        tensor_parallel=replicas.tensor_parallel,
        expert_parallel=replicas.expert_parallel,
        attention_data_parallel=replicas.attention_data_parallel,
        sglang=version("sglang"),
        sparktier=version("sparktier"),
    )


def _device_name(resolved: Resolved) -> str:
    if resolved.device == "cpu":
        return f"{processor()}, {os.cpu_count()} CPUs"
    import torch

    return str(torch.cuda.get_device_name(0))
