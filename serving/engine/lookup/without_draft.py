"""What SGLang asks of a draft before any worker is made."""


def install() -> None:
    """Have SGLang read no draft's config for the layers that it would capture: there is none."""
    from sglang.srt.model_executor.model_runner_components import spec_aux_hidden_state

    spec_aux_hidden_state._resolve_dflash_aux_hidden_state = lambda **_: None
