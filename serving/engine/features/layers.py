"""Checks, before any rank starts, that the engine can capture the layers that its settings name."""

from typing import Any

from sparktier.configs.errors import ConfigError, Problem

_KEY = "training.target_layer_ids"


def require_layers(server_args: Any, target_layer_ids: tuple[int, ...]) -> None:
    """Check the layers against the model and, where there is one, the draft: both read the same capture.

    Raises:
        ConfigError: the model has no such layer to read, or the draft reads other layers.
    """
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.speculative.dspark_components.dspark_config import (
        checkpoint_bundles_dspark_draft,
        read_draft_checkpoint_config,
    )

    model = ModelConfig.from_server_args(server_args)
    # Most models capture a layer's output at the start of the next layer, so the last one can't be read. Models with a
    # DSpark draft inside capture it at the layer's end.
    beyond = 1 if checkpoint_bundles_dspark_draft(model.hf_config) else 2
    highest = model.num_hidden_layers - beyond
    if target_layer_ids[-1] > highest:
        rule = f"must lie between 0 and {highest}, the layers that can be read of this model"
        raise ConfigError([Problem(_KEY, rule, str(list(target_layer_ids)), f"Name layers up to {highest}.")])
    if server_args.speculative_draft_model_path is None:
        return
    drafts = read_draft_checkpoint_config(server_args=server_args).target_layer_ids
    if drafts is not None and tuple(drafts) != target_layer_ids:
        rule = f"must be the layers that the draft reads, which are {list(drafts)}"
        cure = "Name those, or set speculation.method: none."
        raise ConfigError([Problem(_KEY, rule, str(list(target_layer_ids)), cure)])
