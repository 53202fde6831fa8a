"""Entry point `sglang.srt.plugins`: what sparktier changes in SGLang, in every process that runs part of it.

SGLang logs a plugin's error and goes on, so each rank reports `active()` before the replica counts as ready.
"""

import os

import torch

_active = False


def register() -> None:
    """Apply sparktier's hooks; called once a process by SGLang's loader."""
    global _active
    from sparktier.serving.engine import algorithm
    from sparktier.serving.engine.features import capture
    from sparktier.serving.engine.plan import control
    from sparktier.serving.engine.rank_options import rank_options
    from sparktier.serving.engine.requests import context_limit, grammar_faults, least_length, request_faults
    from sparktier.serving.engine.sampling import seed_hook

    options = rank_options()
    if not torch.accelerator.is_available():
        from sparktier.serving.engine import dp_attention
        from sparktier.serving.engine.cpu import attention, torch_ops

        attention.register()
        torch_ops.install()
        dp_attention.install_on_cpu()
    elif options.ladder is not None:
        from sparktier.serving.engine.cuda import flashinfer_attention

        flashinfer_attention.install(trees=options.ladder.tree is not None, proposals=options.captures_proposals)
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from sparktier.serving.engine.telemetry import metric_files

        metric_files.install()
    algorithm.register()
    context_limit.install()
    control.install()
    seed_hook.install()
    least_length.install()
    grammar_faults.install()
    request_faults.install()
    if options.ladder is not None and not options.ladder.has_draft:
        from sparktier.serving.engine.lookup import without_draft

        without_draft.install()
    if options.features is not None:
        capture.install(options.features)
    _active = True


def active() -> bool:
    """Return whether `register` ran to its end in this process."""
    return _active
