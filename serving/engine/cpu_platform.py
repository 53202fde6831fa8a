"""The platform SGLang runs on where there is no accelerator: torch everywhere, gloo between ranks.

An out-of-tree platform rather than SGLang's CPU engine, which needs an AMX build of sgl-kernel that no registry has.
Knows nothing of Ray or of speculation.
"""

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class CpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang's view of this machine's CPUs.

    Source: the plugin contract in `sglang/srt/platforms/interface.py`. `is_cpu()` stays False on purpose: with it,
    SGLang imports CPU kernels that are not there; `is_out_of_tree()` selects its torch-native branches instead.
    """

    _enum = PlatformEnum.OOT
    device_name = "sparktier_cpu"

    def get_default_attention_backend(self) -> str:
        """Return SGLang's own torch attention."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Return the key under which SGLang's fused ops pick their torch version."""
        return "native"

    def is_pin_memory_available(self, device: object = None) -> bool:
        """Return False: there is no accelerator to pin host memory for."""
        return False

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """Return True: speculation runs in the engine's plugin, which brings its own torch kernels."""
        return True

    def post_load_model(self, model: torch.nn.Module) -> None:
        """Give every expert layer of `model` the grouped, expert-parallel CPU forward."""
        from sparktier.serving.engine.cpu_moe import install_cpu_moe

        install_cpu_moe(model)
