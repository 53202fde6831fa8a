"""Entry point `sglang.srt.platforms`: offers our CPU platform where no accelerator is present, and is silent elsewhere.

Runs while SGLang resolves its platform, so it may not import any SGLang module that uses one.
"""

import os

import torch

# SGLang's own switch for its AMX engine: whoever sets it wants that engine, not ours.
_STOCK_CPU_ENGINE_ENV = "SGLANG_USE_CPU_ENGINE"


def activate() -> str | None:
    """Return the path of the platform class, or None where this machine is not ours to drive."""
    if torch.accelerator.is_available() or os.environ.get(_STOCK_CPU_ENGINE_ENV) == "1":
        return None
    return "sparktier.serving.engine.cpu.platform:CpuPlatform"
