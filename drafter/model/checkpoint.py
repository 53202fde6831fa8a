"""Reads and writes draft checkpoints in DeepSpec's and SGLang's layout, with a note of the target they are for.

Owns `config.json` + `model.safetensors` + `sparktier.json` (digest of the weights, fingerprints of target and
tokenizer). Layout: sglang `srt/models/dspark.py` `load_weights`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json, sha256_of, staged, write_json
from sparktier.drafter.data.target import Binding, Target
from sparktier.drafter.model.config import DraftConfig
from sparktier.drafter.model.draft_model import FROZEN, DraftModel
from sparktier.drafter.model.heads import LinearHead
from sparktier.drafter.model.layouts import METHODS, is_speculators
from sparktier.drafter.model.recurrent import build_draft
from sparktier.drafter.model.weights import WEIGHTS, weights_sha256
from sparktier.kernels.cpu_features import has_bfloat16_units

SCHEMA = 1
NOTE = "sparktier.json"
_PLAIN = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def trainable_tensors(model: DraftModel) -> dict[str, Tensor]:
    """Return the tensors that are the drafter's own, by checkpoint name."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(FROZEN)}


def save_draft(
    model: DraftModel, folder: Path, binding: Binding, dtype: torch.dtype = torch.bfloat16, with_tables: bool = False
) -> None:
    """Write a checkpoint that SGLang serves, replacing `folder` in one step.

    The confidence head stays fp32, as SGLang computes it. `with_tables` adds the frozen copies of the target's tables
    that DeepSpec's checkpoints carry; SGLang and `load_draft` take them from the target.

    Raises:
        ArtifactError: the folder can't be written; an earlier one is untouched.
    """
    tensors = model.state_dict() if with_tables else trainable_tensors(model)
    with staged(folder) as part:
        part.mkdir()
        save_file({name: _stored(name, tensor, dtype) for name, tensor in tensors.items()}, part / WEIGHTS)
        names = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float16: "float16"}
        write_json(part / "config.json", model.config.to_hf() | {"dtype": names[dtype]})
        note = {"schema": SCHEMA, "weights_sha256": sha256_of(part / WEIGHTS), **asdict(binding)}
        write_json(part / NOTE, note)


def replace_confidence(folder: Path, head: LinearHead) -> None:
    """Replace the confidence head of a checkpoint in place. Not atomic: call it on a staged copy (`files.staged`)."""
    parts = {"weight": torch.from_numpy(head.weight).float().unsqueeze(0), "bias": torch.tensor([head.bias]).float()}
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        heads = [name for name in tensors if "confidence_head.proj." in name]
        if heads:
            save_file(tensors | {name: parts[name.rpartition(".")[2]] for name in heads}, file)
    if (folder / NOTE).exists():
        note = read_json(folder / NOTE, "a drafter's note")
        write_json(folder / NOTE, note | {"weights_sha256": weights_sha256(folder)})


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kept = torch.float32 if name.startswith("confidence_head.") else dtype
    return tensor.detach().to("cpu", kept).contiguous()


def load_draft(folder: Path, target: Target | None = None) -> DraftModel:
    """Read a checkpoint of ours, DeepSpec, SGLang or speculators in fp32 (the frozen tables in their own dtype).

    Without `target` the checkpoint must carry the frozen tables itself. The output table becomes fp32, too, on a CPU
    that is slow in bf16: its products with many rows took nine tenths of an evaluation there.

    Raises:
        ArtifactError: the checkpoint is corrupt, no draft that we run, or made for another target or tokenizer.
    """
    raw = read_json(folder / "config.json", "a draft's config.json")
    layers = None if target is None else target.num_hidden_layers
    config = DraftConfig.from_hf(raw, str(folder / "config.json"), layers)
    check_draft(folder, target)
    tensors = _read_weights(folder)
    if target is not None and is_speculators(raw):
        _check_copies(tensors, target, folder)
    with torch.device("meta"):
        model = build_draft(config)
    if target is not None:
        _check_sizes(config, target, folder)
        tensors |= {"embed_tokens.weight": target.embedding, "lm_head.weight": target.head}
    _check_tensors(model.state_dict(), tensors, folder)
    embedding, head = tensors["embed_tokens.weight"], tensors["lm_head.weight"]
    own = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith(FROZEN)}
    model.load_state_dict(own, strict=False, assign=True)
    model.set_target_tables(embedding, head if has_bfloat16_units() else head.float())
    return model


def convert(folder: Path, target: Target, final: Path) -> None:
    """Write a draft that is in the layout of `speculators` in DeepSpec's, which SGLang serves, in its number format.

    Raises:
        ArtifactError: as `load_draft`, or `final` can't be written.
    """
    stored = _read_weights(folder).get("fc.weight", torch.empty(0)).dtype
    save_draft(load_draft(folder, target), final, target.binding, stored)


def require_served(folder: Path) -> None:
    """Raise ArtifactError if the draft in `folder` is one of our baselines, or there is none."""
    named = read_json(folder / "config.json", "a draft's config.json").get("architectures")
    if isinstance(named, list) and any(name in METHODS for name in named if isinstance(name, str)):
        raise ArtifactError(
            f"{folder}: must be a DSpark draft (found {named[0]}, a baseline that is evaluated without an engine). "
            "Train one with draft.method dspark."
        )


def needs_conversion(folder: Path) -> bool:
    """Return whether the draft in `folder` is in the layout of `speculators`. Raises ArtifactError without a config."""
    return is_speculators(read_json(folder / "config.json", "a draft's config.json"))


def read_binding(folder: Path) -> Binding:
    """Return the target and tokenizer of the checkpoint; unknown for checkpoints that are not ours."""
    if not (folder / NOTE).exists():
        return Binding("", "")
    note = read_json(folder / NOTE, "a drafter's note")
    return Binding(str(note.get("target_sha256", "")), str(note.get("tokenizer_sha256", "")))


def check_draft(folder: Path, target: Target | None) -> None:
    """Check a checkpoint's digest and, if `target` is given, its target; checkpoints of others have no note to check.

    Raises:
        ArtifactError: it is corrupt, of another schema, or made for another target or tokenizer.
    """
    if not (folder / NOTE).exists():
        return
    note = read_json(folder / NOTE, "a drafter's note")
    if note.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{folder / NOTE}: schema must be {SCHEMA} (found {note.get('schema')}). Retrain or update."
        )
    if weights_sha256(folder) != note.get("weights_sha256"):
        raise ArtifactError(
            f"{folder / WEIGHTS}: its digest must be that of {NOTE} (it differs). Restore the checkpoint."
        )
    if target is not None:
        target.binding.require(read_binding(folder), str(folder))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{folder}: holds no *.safetensors. Give the folder of a draft checkpoint.")
    _require_all_shards(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{file}: must be a safetensors file ({error}). Restore the checkpoint.") from None
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if not _is_unread(name)}


def _is_unread(name: str) -> bool:
    # What speculators keeps of the target for its own losses.
    return "rotary_emb" in name or name.startswith(("verifier_norm.", "verifier_lm_head."))


def _require_all_shards(folder: Path) -> None:
    index = folder / f"{WEIGHTS}.index.json"
    if not index.exists():
        return
    shards = read_json(index, "a checkpoint's index").get("weight_map")
    named = set(shards.values()) if isinstance(shards, dict) else {None}
    missing = sorted(str(name) for name in named if not isinstance(name, str) or not (folder / name).exists())
    if missing:
        raise ArtifactError(
            f"{index}: every file it names must be beside it (found no {missing[0]}). Fetch the whole checkpoint."
        )


def _check_copies(tensors: Mapping[str, Tensor], target: Target, folder: Path) -> None:
    """Refuse tables that were trained: the engine drafts with the target's."""
    for name, own in (("embed_tokens.weight", target.embedding), ("lm_head.weight", target.head)):
        copy = tensors.get(name)
        if copy is not None and not (copy.shape == own.shape and torch.equal(copy.bfloat16(), own.bfloat16())):
            raise ArtifactError(
                f"{folder}: {name} must be the target's, as drafts use that (found another table). Give the target "
                "that the draft was trained for, and a draft that was trained with frozen tables."
            )


def _check_sizes(config: DraftConfig, target: Target, folder: Path) -> None:
    for name, wanted, found in (
        ("hidden_size", target.hidden_size, config.hidden_size),
        ("vocab_size", target.vocab_size, config.vocab_size),
        ("num_target_layers", target.num_hidden_layers, config.num_target_layers),
    ):
        if wanted != found:
            raise ArtifactError(f"{folder}: {name} must be the target's {wanted} (found {found}). Give its own target.")


def _check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    missing, foreign = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or foreign:
        raise ArtifactError(
            f"{folder}: tensors must be those of its config.json (missing {missing[:3]}, unknown {foreign[:3]}). "
            "Restore the checkpoint; without frozen tables, give the target."
        )
    for name, tensor in wanted.items():
        if not name.startswith(FROZEN) and not (found[name].dtype in _PLAIN and found[name].isfinite().all()):
            raise ArtifactError(
                f"{folder}: {name} must hold finite numbers (found {found[name].dtype}, or NaN or infinity in it). Use "
                "an earlier checkpoint, unquantised."
            )
        if tensor.shape != found[name].shape:
            raise ArtifactError(
                f"{folder}: {name} must be {list(tensor.shape)} (found {list(found[name].shape)}). Restore it."
            )
