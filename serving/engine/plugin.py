"""Entry point `sglang.srt.plugins`: what sparktier changes in SGLang, in every process that runs part of it.

SGLang logs and swallows a plugin's error, so `active()` is what readiness asks in every rank.
"""

import os

import torch

_active = False


def register() -> None:
    """Apply sparktier's hooks; called once a process by SGLang's loader."""
    global _active
    from sparktier.serving.engine import algorithm
    from sparktier.serving.engine.features import capture
    from sparktier.serving.engine.rank_options import rank_options
    from sparktier.serving.engine.requests import context_limit, grammar_faults, least_length, request_faults
    from sparktier.serving.engine.sampling import seed_hook as seeds
    from sparktier.serving.engine.speculation import control

    options = rank_options()
    if not torch.accelerator.is_available():
        from sparktier.serving.engine import dp_attention as attention_groups
        from sparktier.serving.engine.cpu import attention as cpu_attention
        from sparktier.serving.engine.cpu import torch_ops as cpu_speculation

        cpu_attention.register()
        cpu_speculation.install()
        attention_groups.install_on_cpu()
    elif options.ladder is not None:
        from sparktier.serving.engine.cuda import flashinfer_attention as gpu_attention

        gpu_attention.install(trees=options.ladder.tree is not None)
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from sparktier.serving.engine.telemetry import metric_files

        metric_files.install()
    algorithm.register()
    context_limit.install()
    control.install()
    seeds.install()
    least_length.install()
    grammar_faults.install()
    request_faults.install()
    if options.features is not None:
        capture.install(options.features)
    _active = True


def active() -> bool:
    """Return whether `register` ran to its end in this process."""
    return _active
