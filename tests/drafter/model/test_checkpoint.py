"""Draft checkpoints: both layouts read back, and every wrong file refused with one clear line."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.target import Binding, Target, read_target
from sparktier.drafter.model import checkpoint as checkpoint_module
from sparktier.drafter.model.checkpoint import load_draft, read_binding, save_draft, trainable_tensors
from sparktier.drafter.model.config import DraftConfig, MarkovType
from support.drafts import loud_model, tiny_config

HEADS = [None, "vanilla", "gated", "rnn"]


def write_target(folder: Path, seed: int = 0, vocab: int = 97, tied: bool = False) -> Path:
    """Write a target checkpoint with nothing in it but what a drafter reads, and a tokenizer."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {"model.embed_tokens.weight": torch.randn(vocab, 32, generator=generator)}
    if not tied:
        tensors["lm_head.weight"] = torch.randn(vocab, 32, generator=generator)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 6}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1}}, "added_tokens": [], "note": seed}))
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return read_target(write_target(tmp_path / "target"))


def draft_folder(tmp_path: Path, target: Target) -> Path:
    save_draft(loud_model(tiny_config("rnn")), tmp_path / "draft", target.binding)
    return tmp_path / "draft"


@pytest.mark.parametrize("markov", HEADS)
@pytest.mark.parametrize("with_tables", [True, False])
def test_what_is_written_reads_back(
    markov: MarkovType | None, with_tables: bool, tmp_path: Path, target: Target
) -> None:
    model = loud_model(tiny_config(markov))
    if not with_tables:
        model.set_target_tables(target.embedding, target.head)
    save_draft(model, tmp_path / "draft", target.binding, torch.float32, with_tables)
    back = load_draft(tmp_path / "draft", None if with_tables else target)
    assert back.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    trained = {name for name, parameter in back.named_parameters() if parameter.requires_grad}
    assert trained == trainable_tensors(model).keys()


@pytest.mark.parametrize("units", [True, False])
def test_the_output_table_is_widened_where_bfloat16_is_slow(
    units: bool, tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "has_bfloat16_units", lambda: units)
    stored = replace(target, embedding=target.embedding.bfloat16(), head=target.head.bfloat16())
    save_draft(loud_model(tiny_config("vanilla")), tmp_path / "draft", target.binding)
    back = load_draft(tmp_path / "draft", stored)
    assert back.lm_head.weight.dtype == (torch.bfloat16 if units else torch.float32)
    assert torch.equal(back.lm_head.weight.bfloat16(), stored.head)
    assert back.embed_tokens.weight.dtype == torch.bfloat16


def test_names_and_shapes_are_deepspecs(tmp_path: Path) -> None:
    """The key list was taken from DeepSpec's modelling code; SGLang's loader is tested in test_sglang_parity."""
    save_draft(loud_model(tiny_config("gated")), tmp_path / "draft", Binding("", ""), with_tables=True)
    found = {name: list(tensor.shape) for name, tensor in load_file(tmp_path / "draft" / "model.safetensors").items()}
    layers = {}
    for i in range(2):
        layers |= {
            f"layers.{i}.self_attn.q_proj.weight": [64, 32],
            f"layers.{i}.self_attn.k_proj.weight": [32, 32],
            f"layers.{i}.self_attn.v_proj.weight": [32, 32],
            f"layers.{i}.self_attn.o_proj.weight": [32, 64],
            f"layers.{i}.self_attn.q_norm.weight": [16],
            f"layers.{i}.self_attn.k_norm.weight": [16],
            f"layers.{i}.mlp.gate_proj.weight": [48, 32],
            f"layers.{i}.mlp.up_proj.weight": [48, 32],
            f"layers.{i}.mlp.down_proj.weight": [32, 48],
            f"layers.{i}.input_layernorm.weight": [32],
            f"layers.{i}.post_attention_layernorm.weight": [32],
        }
    assert found == layers | {
        "embed_tokens.weight": [97, 32],
        "lm_head.weight": [97, 32],
        "norm.weight": [32],
        "fc.weight": [32, 96],
        "hidden_norm.weight": [32],
        "markov_head.markov_w1.weight": [97, 8],
        "markov_head.markov_w2.weight": [97, 8],
        "markov_head.gate_proj.weight": [8, 40],
        "markov_head.gate_proj.bias": [8],
        "confidence_head.proj.weight": [1, 40],
        "confidence_head.proj.bias": [1],
    }


# As in the released Qwen3-4B block-7 drafts: the target's config and the DSpark keys.
RELEASED = {
    "architectures": ["Qwen3DSparkModel"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "block_size": 7, "confidence_head_with_markov": True, "dtype": "bfloat16", "enable_confidence_head": True,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560, "initializer_range": 0.02,
    "intermediate_size": 9728, "layer_types": ["full_attention"] * 5, "markov_head_type": "vanilla",
    "markov_rank": 256, "mask_token_id": 151669, "max_position_embeddings": 40960, "max_window_layers": 36,
    "model_type": "qwen3", "num_anchors": 512, "num_attention_heads": 32, "num_hidden_layers": 5,
    "num_key_value_heads": 8, "num_target_layers": 36, "pad_token_id": None, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "sliding_window": None,
    "target_layer_ids": [1, 9, 17, 25, 33], "tie_word_embeddings": False, "transformers_version": "5.2.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def test_deepspecs_released_config_is_understood() -> None:
    config = DraftConfig.from_hf(RELEASED, "config.json")
    assert (config.rope_theta, config.block_size, config.feature_size) == (1e6, 7, 5 * 2560)
    assert DraftConfig.from_hf(config.to_hf(), "again") == config


def without(*keys: str) -> dict[str, object]:
    return {key: value for key, value in RELEASED.items() if key not in keys}


READ: dict[str, dict[str, object]] = {
    "as released": RELEASED,
    "theta at the top": without("rope_parameters") | {"rope_theta": 500_000.0},
    "theta at both places": RELEASED | {"rope_theta": 7.0},
    "theta beside a type": RELEASED | {"rope_parameters": {"rope_type": "default"}, "rope_theta": 7.0},
    "theta in the old object": RELEASED | {"rope_scaling": {"type": "default", "rope_theta": 5e5}},
    "an empty object": RELEASED | {"rope_scaling": {}, "rope_parameters": None, "rope_theta": 3e5},
    "no theta": without("rope_parameters"),
    "the whole head rotates": RELEASED | {"partial_rotary_factor": 1.0},
    "a window that no layer has": RELEASED | {"use_sliding_window": True, "sliding_window": 4096},
    "no layer types": without("layer_types"),
    "nested": without("block_size", "mask_token_id", "target_layer_ids")
    | {"dflash_config": {"block_size": 5, "target_layer_ids": [1, 2]}, "dspark_config": {"mask_token_id": 9}},
    "nested and at the top": RELEASED | {"dflash_config": {"block_size": 5, "markov_rank": 256}},
    "no word of heads": without("enable_confidence_head", "confidence_head_with_markov"),
}


@pytest.mark.parametrize("name", READ)
def test_the_engine_reads_a_config_as_the_trainer_does(name: str, tmp_path: Path) -> None:
    """What SGLang's draft model takes from the same file, by its own readers."""
    from sglang.srt.models.dflash import _get_dflash_layer_attention_params
    from sglang.srt.speculative.dspark_components.dspark_config import parse_dspark_draft_config
    from sglang.srt.utils.hf_transformers_utils import get_rope_config

    (tmp_path / "config.json").write_text(json.dumps(READ[name]))
    ours = DraftConfig.from_hf(json.loads((tmp_path / "config.json").read_text()), "config.json")
    theirs = AutoConfig.from_pretrained(tmp_path)
    theta, rope = get_rope_config(theirs)
    assert theta == ours.rope_theta
    assert rope["rope_type"] == "default"
    assert set(rope) <= {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    windows = {_get_dflash_layer_attention_params(theirs, layer)[0] for layer in range(ours.num_hidden_layers)}
    assert windows == {-1}
    dspark = parse_dspark_draft_config(draft_hf_config=theirs)
    assert dspark.gamma == ours.block_size
    assert dspark.target_layer_ids == list(ours.target_layer_ids)
    for key in ("num_hidden_layers", "num_target_layers", "mask_token_id", "markov_rank", "markov_head_type"):
        assert getattr(dspark, key) == getattr(ours, key), key
    for key in (
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "attention_bias",
    ):
        assert getattr(theirs, key) == getattr(ours, key), key


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
IGNORED: dict[str, tuple[dict[str, object], str]] = {
    "nested rope": ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters.full_attention"),
    "nested yarn": ({"rope_parameters": {"full_attention": YARN}}, "rope_parameters.full_attention"),
    "yarn": ({"rope_parameters": YARN}, "rope_parameters.rope_type"),
    "yarn beside plain": ({"rope_scaling": YARN}, "rope_scaling.rope_type"),
    "old yarn": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling.type"),
    "a factor without a type": ({"rope_parameters": {"factor": 2.0}}, "rope_parameters.factor"),
    "mrope": ({"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, "rope_parameters.mrope_section"),
    "half a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "half a head, nested": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary"),
    "interleaved": ({"rope_is_neox_style": False}, "rope_is_neox_style"),
    "a window": ({"use_sliding_window": True, "layer_types": None}, "use_sliding_window"),
    "window layers": ({"layer_types": ["sliding_attention"] * 5}, "layer_types"),
    "causal": ({"is_causal": True}, "is_causal"),
    "gemma": ({"use_gemma_norm": True}, "use_gemma_norm"),
    "value scale": ({"dflash_config": {"attention_value_scale": 2.0}}, "attention_value_scale"),
    "convolution": ({"dflash_config": {"conv_kernel_size": 4, "conv_group_size": 2}}, "conv_kernel_size"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    "prefixed": ({"dspark_block_size": 3}, "dspark_block_size"),
    "nested where it is unread": ({"dflash_config": {"rope_theta": 1e6}}, "dflash_config.rope_theta"),
    "block in the wrong object": ({"dspark_config": {"block_size": 3}}, "dspark_config.block_size"),
    "two ranks": ({"dspark_config": {"markov_rank": 8}}, "dspark_config.markov_rank"),
    "a head without a type": ({"markov_head_type": None}, "markov_head_type"),
    "null size": ({"hidden_size": None}, "hidden_size"),
    "null heads": ({"num_attention_heads": None}, "num_attention_heads"),
    "null head size": ({"head_dim": None}, "head_dim"),
    "null rank": ({"markov_rank": None}, "markov_rank"),
    "null theta": ({"rope_parameters": {"rope_theta": None}}, "rope_theta"),
    "theta is text": ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta"),
    "theta is infinite": ({"rope_parameters": {"rope_theta": math.inf}}, "rope_theta"),
    "rope is text": ({"rope_parameters": "yarn"}, "rope_parameters"),
    "size is text": ({"hidden_size": "2560"}, "hidden_size"),
    "size is true": ({"num_hidden_layers": True}, "num_hidden_layers"),
    "layers are a number": ({"target_layer_ids": 5}, "target_layer_ids"),
    "layers are text": ({"target_layer_ids": ["1"]}, "target_layer_ids"),
    "kinds are a number": ({"layer_types": 5}, "layer_types"),
    "kinds are lists": ({"layer_types": [["full_attention"]]}, "layer_types"),
    "architectures are a number": ({"architectures": 5}, "architectures"),
    "no architectures": ({"architectures": None}, "architectures"),
    "nested is text": ({"dflash_config": "x"}, "dflash_config"),
}


@pytest.mark.parametrize("name", IGNORED)
def test_maths_that_would_be_ignored_is_refused_by_its_key(name: str) -> None:
    changes, key = IGNORED[name]
    raw = json.loads(json.dumps(RELEASED | changes))
    with pytest.raises(ArtifactError, match=r"^here/config\.json: .*\(found .*\)\. [A-Z].*\.$") as caught:
        DraftConfig.from_hf(raw, "here/config.json")
    assert key in str(caught.value)


@pytest.mark.parametrize("key", ["head_dim", "num_key_value_heads", "hidden_size", "mask_token_id", "block_size"])
def test_a_size_for_which_the_engine_has_a_default_of_its_own_must_be_written(key: str) -> None:
    with pytest.raises(ArtifactError, match=f"{key}: Field required"):
        DraftConfig.from_hf(without(key), "config.json")


def test_a_tied_target_lends_its_embedding_as_head(tmp_path: Path) -> None:
    target = read_target(write_target(tmp_path / "tied", tied=True))
    assert target.head is target.embedding


def test_fingerprints_ignore_dtype_and_cosmetics_but_not_weights(tmp_path: Path) -> None:
    first = read_target(write_target(tmp_path / "a", seed=0))
    half = write_target(tmp_path / "b", seed=0)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors")
    assert read_target(half).binding == first.binding
    other = read_target(write_target(tmp_path / "c", seed=1)).binding
    assert other.target_sha256 != first.binding.target_sha256
    assert other.tokenizer_sha256 == first.binding.tokenizer_sha256


def flip_a_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_note(folder: Path) -> None:
    (folder / "sparktier.json").unlink()


def spoil_weight(folder: Path, value: float) -> None:
    drop_note(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.mlp.down_proj.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors")


DAMAGE = {
    "a weight is not a number": (
        lambda f: spoil_weight(f, math.nan),
        r"layers.0.mlp.down_proj.weight must hold finite",
    ),
    "a weight is infinite": (lambda f: spoil_weight(f, -math.inf), r"layers.0.mlp.down_proj.weight must hold finite"),
    "a flipped bit": (lambda f: flip_a_byte(f / "model.safetensors"), "digest"),
    "a cut file": (lambda f: (drop_note(f), (f / "model.safetensors").write_bytes(b"\x10\0\0")), "safetensors"),
    "no weights": (lambda f: (drop_note(f), (f / "model.safetensors").unlink()), r"holds no"),
    "no config": (lambda f: (f / "config.json").unlink(), "found nothing"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "another architecture": (lambda f: edit_json(f / "config.json", architectures=["LlamaForCausalLM"]), "Llama"),
    "more layers": (lambda f: edit_json(f / "config.json", num_hidden_layers=3), "missing"),
    "another rank": (lambda f: edit_json(f / "config.json", markov_rank=4), r"must be \[97, 4\]"),
    "yarn": (lambda f: edit_json(f / "config.json", rope_parameters={"rope_type": "yarn"}), "yarn"),
    "sliding window": (lambda f: edit_json(f / "config.json", layer_types=["sliding_attention"] * 2), "sliding"),
    "no mask token": (lambda f: edit_json(f / "config.json", mask_token_id=97), "outside the vocabulary"),
    "future schema": (lambda f: edit_json(f / "sparktier.json", schema=2), "schema"),
    "another target": (lambda f: edit_json(f / "sparktier.json", target_sha256="0" * 64), "another target"),
    "another tokenizer": (lambda f: edit_json(f / "sparktier.json", tokenizer_sha256="0" * 64), "another tokenizer"),
    "another depth of target": (lambda f: edit_json(f / "config.json", num_target_layers=7), "num_target_layers"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_line(damage: str, tmp_path: Path, target: Target) -> None:
    folder = draft_folder(tmp_path, target)
    load_draft(folder, target)
    spoil, expected = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(ArtifactError, match=expected) as caught:
        load_draft(folder, target)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "\n" not in message.strip()


def test_a_missing_target_shard_is_refused(tmp_path: Path) -> None:
    folder = write_target(tmp_path / "target")
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="model-00001-of-00002"):
        read_target(folder)


def test_binding_of_foreign_checkpoints_is_unknown_and_matches(tmp_path: Path, target: Target) -> None:
    folder = draft_folder(tmp_path, target)
    drop_note(folder)
    assert read_binding(folder) == Binding("", "")
    load_draft(folder, target)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from support.drafts import loud_model, tiny_config
from sparktier.drafter.model.checkpoint import save_draft
from sparktier.drafter.data.target import Binding
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_draft(loud_model(tiny_config("rnn"), seed=9), Path(sys.argv[1]), Binding("", ""))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path, target: Target) -> None:
    """The kernel really refuses the write (RLIMIT_FSIZE stands for the full disk)."""
    folder = draft_folder(tmp_path, target)
    before = load_file(folder / "model.safetensors")
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FULL_DISK, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != -signal.SIGXFSZ
    assert done.stdout.startswith("ArtifactError"), done.stderr
    assert "untouched" in done.stdout
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
