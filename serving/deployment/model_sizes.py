"""What a checkpoint's `config.json` says about sizes: parameters by how they are sharded, and the cache of one token.

The shapes come from transformers, which builds the model without memory; nothing is downloaded.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any

from sparktier.configs.errors import ArtifactError
from sparktier.configs.settings.model import ModelSource, local_path, model_source


class Role(Enum):
    """How SGLang places a group of parameters, by what they are for."""

    EXPERTS = "experts"
    SHARED_EXPERTS = "shared experts"
    ATTENTION = "attention heads"
    KEY_VALUE = "key and value heads"
    MLP = "dense MLP"
    EMBEDDING = "embedding"
    HEAD = "output head"
    REPLICATED = "on every rank"
    NORMS = "norms and routers"


# First match wins. Names are transformers'.
_ROLES = (
    (re.compile(r"\.experts\."), Role.EXPERTS),
    (re.compile(r"\.shared_experts?\."), Role.SHARED_EXPERTS),
    (re.compile(r"embed_tokens"), Role.EMBEDDING),
    (re.compile(r"^lm_head"), Role.HEAD),
    (re.compile(r"self_attn\.(k|v)_proj"), Role.KEY_VALUE),
    (re.compile(r"self_attn\.(q|o|q_b|kv_b|o_a|o_b)_proj"), Role.ATTENTION),
    (re.compile(r"\.mlp\.(gate|up|down)_proj"), Role.MLP),
    (re.compile(r"_proj\.weight$"), Role.REPLICATED),
)


@dataclass(frozen=True)
class ModelFacts:
    """A model in numbers."""

    config: Mapping[str, Any]
    """Its `config.json`."""
    parameters: Mapping[Role, int]
    """How many there are, by role."""
    per_layer: Mapping[Role, int]
    """The same for its last layer alone."""

    def number(self, *names: str, default: int = 0) -> int:
        """Return the first of `names` that the config has."""
        return next((int(self.config[name]) for name in names if self.config.get(name) is not None), default)

    @property
    def layers(self) -> int:
        """Layers of the backbone."""
        return self.number("num_hidden_layers")

    @property
    def experts(self) -> int:
        """Routed experts of a layer; 0 for a dense model."""
        return self.number("num_experts", "n_routed_experts", "num_local_experts")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.number("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.number("num_key_value_heads", default=self.heads)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.number("head_dim", default=self.number("hidden_size") // max(1, self.heads))

    @property
    def latent_attention(self) -> bool:
        """Whether keys and values are one latent vector for all heads (MLA and its successors): no tree masks there."""
        return self.config.get("model_type") == "deepseek_v4" or self.config.get("kv_lora_rank") is not None

    @property
    def dspark_stages(self) -> int:
        """Layers of the DSpark draft inside this very checkpoint; 0 if there is none."""
        return len(self.config.get("dspark_target_layer_ids") or [])

    @property
    def draft_block(self) -> int | None:
        """Tokens that this DSpark checkpoint drafts at once; None if it is no DSpark checkpoint."""
        return self.number("dspark_block_size", "block_size") or None


def read_config(path: str, explicit: Path | None = None) -> dict[str, Any]:
    """Return the config of the model at `path` (a value of `model.path`), or of the file `explicit`.

    Raises:
        ArtifactError: there is none here, or it is not a model's.
    """
    file = explicit or _config_file(path)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: its config.json must be at hand to be planned with (found none in {file}). "
            "Give it with --model-config, or --draft-config for a draft."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("num_hidden_layers"), int):
        raise ArtifactError(
            f"{file} must be the config.json of a language model (found no num_hidden_layers). Give another file."
        )
    return config


def model_facts(config: Mapping[str, Any]) -> ModelFacts:
    """Return the sizes of the model that `config` describes.

    Raises:
        ArtifactError: transformers does not know its architecture.
    """
    # Late: torch and transformers take seconds, and only this function needs them.
    import torch
    import transformers

    known = {key: value for key, value in config.items() if key not in ("source", "quantization_config")}
    try:
        settings = transformers.AutoConfig.for_model(**known)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(settings)
    except Exception as error:  # transformers raises whatever an odd config makes it stumble over
        raise ArtifactError(
            f"the model type must be one that transformers can lay out (found {config.get('model_type')!r}: {error}). "
            "Plan with a config.json of a known type."
        ) from error
    total: Counter[Role] = Counter()
    layer: Counter[Role] = Counter()
    for name, parameter in model.named_parameters():
        role = next((role for pattern, role in _ROLES if pattern.search(name)), Role.NORMS)
        total[role] += parameter.numel()
        if f".layers.{config['num_hidden_layers'] - 1}." in name:
            layer[role] += parameter.numel()
    return ModelFacts(config, total, layer)


def _config_file(path: str) -> Path:
    source = model_source(path)
    if source is ModelSource.HUB:
        name = f"{path.replace('/', '--')}.json"
        return Path(str(resources.files("sparktier.configs").joinpath("architectures", name)))
    if source is ModelSource.DEMO:
        from sparktier.serving.demo_model import built_demo_model

        directory = built_demo_model()
        if directory is None:
            raise ArtifactError("demo: the demo model must be built to be planned with (found none). Run make demo.")
        return directory / "config.json"
    return local_path(path) / "config.json"
