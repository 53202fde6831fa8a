"""SGLang's platform for machines without an accelerator: torch operations, gloo between ranks.

It is an out-of-tree platform because SGLang's CPU engine needs an AMX build of sgl-kernel that is not published.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class CpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang's view of this machine's CPUs.

    Source: the plugin contract in `sglang/srt/platforms/interface.py`. `is_cpu()` stays False on purpose: otherwise
    SGLang would import CPU kernels that are not installed; `is_out_of_tree()` selects its torch-native branches.
    """

    _enum = PlatformEnum.OOT
    device_name = "sparktier_cpu"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Choose our attention where SGLang chose its own for CPUs, which needs the AMX build."""
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = self.get_default_attention_backend()

    def get_default_attention_backend(self) -> str:
        """Return our torch attention, which the plugin registers."""
        from sparktier.serving.engine.cpu.attention import NAME

        return NAME

    def get_dispatch_key_name(self) -> str:
        """Return the key under which SGLang's fused ops pick their torch version."""
        return "native"

    def is_pin_memory_available(self, device: object = None) -> bool:
        """Return False: there is no accelerator to pin host memory for."""
        return False

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """Return True: our plugin brings torch versions of the kernels of speculation."""
        return True

    def get_kv_pool_cls(self, *, kind: Any) -> type | None:
        """Return the KV pool that needs no Triton, for plain attention; SGLang's own for other kinds."""
        from sparktier.serving.engine.cpu.torch_ops import CpuKvPool

        return CpuKvPool if kind == "mha" else None

    def get_speculative_cache_locs_fn(self) -> Callable[..., torch.Tensor]:
        """Return the torch version of SGLang's gather of verify slots."""
        from sparktier.serving.engine.cpu.torch_ops import window_slots

        return window_slots

    def post_load_model(self, model: torch.nn.Module) -> None:
        """Install the CPU forward of experts and the packed linear layers in `model`."""
        from sparktier.serving.engine.cpu.linear import install_cpu_linear
        from sparktier.serving.engine.cpu.moe import install_cpu_moe
        from sparktier.serving.engine.cpu.torch_ops import use_torch_draft

        install_cpu_moe(model)
        install_cpu_linear(model)
        use_torch_draft(model)
