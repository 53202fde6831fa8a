"""Published drafts: each family's config gives the shapes and constants that its own code uses, or is refused by name.

Configs are written by hand, after DeepSpec's `config/` and the targets' own.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.target import Binding, Target
from sparktier.drafter.model.checkpoint import convert, load_draft, save_draft
from sparktier.drafter.model.config import DraftConfig
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.model.layouts import _QWEN3_DEFAULTS, _REFUSED
from support.drafts import loud_model, speculators_config, tiny_config, write_as_speculators

# hidden, MLP, query heads, target layers, layers read.
QWEN3 = {
    "4b": (2560, 9728, 32, 36, (1, 9, 17, 25, 33)),
    "8b": (4096, 12288, 32, 36, (1, 9, 17, 25, 33)),
    "14b": (5120, 17408, 40, 40, (1, 10, 19, 28, 37)),
}
VOCAB, RANK = 151_936, 256


def released(size: str, markov: str | None = "vanilla") -> dict[str, Any]:
    hidden, wide, heads, layers, ids = QWEN3[size]
    raw: dict[str, Any] = {
        "architectures": ["Qwen3DSparkModel"], "attention_bias": False, "attention_dropout": 0.0, "block_size": 7,
        "dtype": "bfloat16", "enable_confidence_head": markov is not None, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": wide,
        "layer_types": ["full_attention"] * 5, "markov_rank": 0 if markov is None else RANK, "mask_token_id": 151669,
        "max_position_embeddings": 40960, "max_window_layers": layers, "model_type": "qwen3", "num_anchors": 512,
        "num_attention_heads": heads, "num_hidden_layers": 5, "num_key_value_heads": 8, "num_target_layers": layers,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "target_layer_ids": list(ids), "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False,
        "vocab_size": VOCAB,
    }  # fmt: skip
    if markov is not None:
        raw |= {"markov_head_type": markov, "confidence_head_with_markov": True}
    return raw


@pytest.mark.parametrize("size", QWEN3)
@pytest.mark.parametrize("markov", ["vanilla", "gated", "rnn", None])
def test_every_field_is_deepspecs(size: str, markov: str | None) -> None:
    """DFlash is DeepSpec's same model without heads."""
    hidden, wide, heads, layers, ids = QWEN3[size]
    config = DraftConfig.from_hf(released(size, markov), "config.json")
    assert config.model_dump() == {
        "method": "dspark",
        "hidden_size": hidden, "num_hidden_layers": 5, "num_attention_heads": heads, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": wide, "vocab_size": VOCAB, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 40960, "attention_bias": False, "block_size": 7, "num_target_layers": layers,
        "target_layer_ids": ids, "mask_token_id": 151669, "num_anchors": 512,
        "markov_rank": 0 if markov is None else RANK, "markov_head_type": markov or "vanilla",
        "enable_confidence_head": markov is not None, "confidence_head_with_markov": markov is not None,
    }  # fmt: skip


def shapes(config: DraftConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in DraftModel(config).state_dict().items()}


@pytest.mark.parametrize("size", QWEN3)
@pytest.mark.parametrize("markov", ["vanilla", "gated", "rnn", None])
def test_every_shape_is_deepspecs(size: str, markov: str | None) -> None:
    hidden, wide, heads, _, ids = QWEN3[size]
    expected: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (VOCAB, hidden), "lm_head.weight": (VOCAB, hidden), "norm.weight": (hidden,),
        "hidden_norm.weight": (hidden,), "fc.weight": (hidden, len(ids) * hidden),
    }  # fmt: skip
    for layer in (f"layers.{number}." for number in range(5)):
        expected |= {
            f"{layer}self_attn.q_proj.weight": (heads * 128, hidden),
            f"{layer}self_attn.k_proj.weight": (1024, hidden),
            f"{layer}self_attn.v_proj.weight": (1024, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, heads * 128),
            f"{layer}self_attn.q_norm.weight": (128,),
            f"{layer}self_attn.k_norm.weight": (128,),
            f"{layer}mlp.gate_proj.weight": (wide, hidden),
            f"{layer}mlp.up_proj.weight": (wide, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, wide),
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
        }
    if markov is not None:
        expected |= {
            "markov_head.markov_w1.weight": (VOCAB, RANK), "markov_head.markov_w2.weight": (VOCAB, RANK),
            "confidence_head.proj.weight": (1, hidden + RANK), "confidence_head.proj.bias": (1,),
        }  # fmt: skip
    if markov == "gated":
        expected |= {"markov_head.gate_proj.weight": (RANK, hidden + RANK), "markov_head.gate_proj.bias": (RANK,)}
    if markov == "rnn":
        joint = (3 * RANK, 2 * RANK + hidden)
        expected |= {"markov_head.joint_proj.weight": joint, "markov_head.joint_proj.bias": (3 * RANK,)}
    assert shapes(DraftConfig.from_hf(released(size, markov), "config.json")) == expected


# Gemma-4-12B's draft has the target's own layers.
GEMMA4 = {
    "architectures": ["Gemma4DSparkModel"], "model_type": "gemma4_text", "block_size": 7, "mask_token_id": 4,
    "target_layer_ids": [5, 17, 29, 41, 46], "num_target_layers": 48, "num_hidden_layers": 5, "markov_rank": RANK,
    "markov_head_type": "vanilla", "enable_confidence_head": True, "confidence_head_with_markov": True,
}  # fmt: skip


@pytest.mark.parametrize("name", _REFUSED)
def test_a_family_that_is_not_run_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ArtifactError, match=rf"^here: architectures: {name} is not run: .*\(found \['{name}'\]\)\. "):
        DraftConfig.from_hf(GEMMA4 | {"architectures": [name]}, "here")


def speculator(**changes: Any) -> dict[str, Any]:
    """The 8B's draft in the other layout."""
    return speculators_config(DraftConfig.from_hf(released("8b"), "config.json"), **changes)


def test_the_layout_of_speculators_gives_the_same_draft() -> None:
    found = DraftConfig.from_hf(speculator(), "config.json", target_layers=36)
    assert found == DraftConfig.from_hf(released("8b"), "config.json")


def test_layers_may_be_written_as_a_difference_from_defaults() -> None:
    layer = {"intermediate_size": 12288, "num_hidden_layers": 5, "num_key_value_heads": 8, "rope_theta": 1e6}
    raw = speculator(transformer_layer_config=layer | {"max_position_embeddings": 40960})
    assert DraftConfig.from_hf(raw, "config.json", target_layers=36) == DraftConfig.from_hf(released("8b"), "again")


def test_what_that_layout_leaves_out_are_transformers_defaults() -> None:
    defaults = Qwen3Config().to_dict()
    assert {key: defaults[key] for key in _QWEN3_DEFAULTS} == _QWEN3_DEFAULTS


LAYER = speculator()["transformer_layer_config"]
UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    "the other slot convention": ({"sample_from_anchor": False}, "sample_from_anchor"),
    "no word of the slots": ({"sample_from_anchor": None}, "sample_from_anchor"),
    "a smaller vocabulary": ({"draft_vocab_size": 32000}, "draft_vocab_size"),
    "another width": ({"target_hidden_size": 2048}, "target_hidden_size"),
    "another method": ({"speculators_model_type": "eagle3"}, "speculators_model_type"),
    "domino": ({"projector_type": "domino"}, "projector_type"),
    "shifted": ({"shift_label": True}, "shift_label"),
    "other layers": ({"transformer_layer_config": LAYER | {"model_type": "llama"}}, "transformer_layer_config"),
    "windows": (
        {"transformer_layer_config": LAYER | {"layer_types": ["sliding_attention"] * 5}},
        "layer_types",
    ),
    "no layers": ({"transformer_layer_config": None}, "transformer_layer_config"),
    "the embedding is read": ({"aux_hidden_state_layer_ids": [0, 10]}, "must rise strictly"),
    "layers are text": ({"aux_hidden_state_layer_ids": ["2"]}, "aux_hidden_state_layer_ids"),
    "another head": ({"markov_head_type": "gru"}, "markov_head_type"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_that_layout_may_hold_and_we_do_not_run_is_refused(name: str) -> None:
    changes, key = UNLIKE[name]
    with pytest.raises(ArtifactError, match=r"^here: .*\(found .*\)\. [A-Z].*\.$") as caught:
        DraftConfig.from_hf(speculator(**changes), "here", target_layers=36)
    assert key in str(caught.value)


def test_that_layout_needs_its_target() -> None:
    with pytest.raises(ArtifactError, match="give the target"):
        DraftConfig.from_hf(speculator(), "here")


@pytest.fixture
def target() -> Target:
    """A target with random tables for `tiny_config`."""
    config = tiny_config("rnn")
    table = torch.randn(2, config.vocab_size, config.hidden_size, generator=torch.Generator().manual_seed(3))
    return Target(
        config.hidden_size, config.num_target_layers, config.vocab_size, table[0], table[1], Binding("target", "words")
    )


def in_speculators_layout(folder: Path, target: Target) -> DraftModel:
    """Write a tiny draft in both layouts, with copies of the target's tables, and return it."""
    model = loud_model(tiny_config("rnn"))
    model.set_target_tables(target.embedding, target.head)
    save_draft(model, folder.with_name("first"), Binding("", ""), torch.float32, with_tables=True)
    write_as_speculators(folder.with_name("first"), folder)
    return model


def test_a_draft_of_speculators_loads_and_is_converted_for_the_engine(tmp_path: Path, target: Target) -> None:
    model = in_speculators_layout(tmp_path / "theirs", target)
    convert(tmp_path / "theirs", target, tmp_path / "ours")
    raw = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert DraftConfig.from_hf(raw | {"num_anchors": model.config.num_anchors}, "ours") == model.config
    for folder in ("theirs", "ours"):
        back = load_draft(tmp_path / folder, target).state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(back[name], tensor), (folder, name)


def test_trained_tables_are_refused(tmp_path: Path, target: Target) -> None:
    in_speculators_layout(tmp_path / "theirs", target)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"lm_head\.weight must be the target's"):
        load_draft(tmp_path / "theirs", target)


def sharded(folder: Path, model: DraftModel) -> list[Path]:
    """Write a draft in two files with an index, as large checkpoints are."""
    save_draft(model, folder, Binding("", ""), torch.float32, with_tables=True)
    tensors = load_file(folder / "model.safetensors")
    for extra in ("model.safetensors", "sparktier.json"):
        (folder / extra).unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: files[number % 2] for number, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return [folder / file for file in files]


@pytest.mark.parametrize("markov", ["vanilla", "gated", "rnn"])
def test_sharded_weights_are_one_draft(markov: Any, tmp_path: Path) -> None:
    model = loud_model(tiny_config(markov))
    sharded(tmp_path / "draft", model)
    back = load_draft(tmp_path / "draft").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    files = sharded(tmp_path / "draft", loud_model(tiny_config("gated")))
    files[1].unlink()
    with pytest.raises(ArtifactError, match=f"found no {files[1].name}"):
        load_draft(tmp_path / "draft")
