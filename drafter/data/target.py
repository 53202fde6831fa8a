"""Reads what a drafter needs from its target's checkpoint: sizes, the two token tables, and fingerprints.

Only these two tensors are read, so the target itself need not fit this machine.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json

EMBEDDING_SUFFIX = "embed_tokens.weight"
HEAD_NAME = "lm_head.weight"


@dataclass(frozen=True)
class Binding:
    """The target and tokenizer that something was made for; an empty string is unknown and matches all."""

    target_sha256: str
    tokenizer_sha256: str

    def require(self, other: "Binding", what: str) -> None:
        """Raise ArtifactError unless `what`, which was made for `other`, fits this target."""
        for field, name in (("target_sha256", "target"), ("tokenizer_sha256", "tokenizer")):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine and theirs and mine != theirs:
                raise ArtifactError(
                    f"{what}: was made for another {name} (its {name} is {theirs[:12]}, this one is {mine[:12]}). "
                    f"Give the {name} it was made for, or train a drafter for this one."
                )


@dataclass(frozen=True)
class Target:
    """The parts of a target that its drafter uses: embedding and head [vocab, hidden] in the checkpoint's dtype."""

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    embedding: Tensor
    head: Tensor
    binding: Binding


def read_target(folder: Path) -> Target:
    """Read a Hugging Face checkpoint folder (one file or sharded; tied or separate tables).

    Raises:
        ArtifactError: a file is missing or corrupt, or holds no token embedding.
    """
    raw = read_json(folder / "config.json", "a target's config.json")
    layers = _layers(raw, folder / "config.json")
    names = _tensor_files(folder)
    embedding_name = next((name for name in names if name.endswith(EMBEDDING_SUFFIX)), None)
    if embedding_name is None:
        raise ArtifactError(f"{folder}: a target must hold *.{EMBEDDING_SUFFIX} (found none). Give a full checkpoint.")
    embedding = _read_tensor(names[embedding_name], embedding_name)
    head_name = next((name for name in names if name.endswith(HEAD_NAME)), None)
    head = embedding if head_name is None else _read_tensor(names[head_name], head_name)
    if embedding.ndim != 2:
        raise ArtifactError(
            f"{folder}: {embedding_name} must be a table, one row a token (found shape {list(embedding.shape)}). "
            "Restore the checkpoint."
        )
    return Target(
        hidden_size=embedding.shape[1],
        num_hidden_layers=layers,
        vocab_size=embedding.shape[0],
        embedding=embedding,
        head=head,
        binding=Binding(_table_sha256(embedding, layers), tokenizer_sha256(folder)),
    )


def _layers(raw: Mapping[str, Any], path: Path) -> int:
    config = raw.get("text_config") or raw
    layers = config.get("num_hidden_layers") if isinstance(config, Mapping) else None
    if type(layers) is not int or layers < 1:
        raise ArtifactError(
            f"{path}: num_hidden_layers must be a whole number above 0 (found {layers!r}). Give a model's checkpoint."
        )
    return layers


def tokenizer_sha256(folder: Path) -> str:
    """Return the digest of what `tokenizer.json` maps (vocabulary, merges, added tokens), "" without the file."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return ""
    raw = read_json(path, "a tokenizer")
    essence = {key: raw.get(key) for key in ("model", "added_tokens")}
    return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()


def _tensor_files(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index, "a checkpoint's index").get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ArtifactError(
                f"{index}: weight_map must name a file for each tensor (found {weight_map!r:.80}). Restore the file."
            )
        return {name: folder / file for name, file in weight_map.items()}
    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as handle:
            return dict.fromkeys(handle.keys(), path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: must be a safetensors checkpoint ({error}). Restore the file.") from None


def _read_tensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: {name} can't be read ({error}). Restore the file.") from None
    return tensor


def _table_sha256(embedding: Tensor, num_hidden_layers: int) -> str:
    # In bf16, so that a copy of the target saved in fp32 is the same target.
    table = embedding.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(num_hidden_layers.to_bytes(4, "little") + table.tobytes()).hexdigest()
