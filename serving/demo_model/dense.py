"""Reads SmolLM2 out of its GGUF file: float32 weights by their Hugging Face names, config, tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparktier.configs.errors import ArtifactError

CONTROL_TOKEN = 3  # gguf's token_type of special tokens
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class DenseConfig:
    """The shape of a Llama model; sizes in units of weights."""

    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int
    rope_theta: float
    norm_eps: float


@dataclass(frozen=True)
class DenseModel:
    """A Llama model with tied embeddings.

    `weights` are float32 [out, in] under Hugging Face's Llama names.
    """

    config: DenseConfig
    weights: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerFast


def read_gguf(path: Path) -> DenseModel:
    """Dequantise the Llama model in `path`. Raises ArtifactError when it is not a Llama model with tied embeddings."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    if fields.get("general.architecture") != "llama":
        raise ArtifactError(
            f"{path}: must hold a Llama model (found {fields.get('general.architecture')!r}). "
            "Delete it and let the demo model be built again."
        )
    config = _config(fields)
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        weights[_hugging_face_name(tensor.name)] = _unpermuted(tensor.name, weight, config)
    return DenseModel(config, weights, _tokenizer(fields))


def _config(fields: dict[str, Any]) -> DenseConfig:
    return DenseConfig(
        layers=fields["llama.block_count"],
        hidden=fields["llama.embedding_length"],
        intermediate=fields["llama.feed_forward_length"],
        query_heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        head_dim=fields["llama.rope.dimension_count"],
        vocab=fields["llama.vocab_size"],
        context_tokens=fields["llama.context_length"],
        rope_theta=fields["llama.rope.freq_base"],
        # Stored as float32: 9.9999997e-06.
        norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
    )


def _hugging_face_name(name: str) -> str:
    top = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in top:
        return top[name]
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"


def _unpermuted(name: str, weight: torch.Tensor, config: DenseConfig) -> torch.Tensor:
    """Rows of q and k from llama.cpp's order (rotary pairs side by side) to Hugging Face's (halves apart).

    Undoes `permute` of llama.cpp's convert_hf_to_gguf.py.
    """
    heads = {"attn_q": config.query_heads, "attn_k": config.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    pairs = weight.view(heads, config.head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits digits one by one: what GGUF calls the pre-tokenizer `smollm`."""
    pieces: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == CONTROL_TOKEN]
    backend.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=pieces[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=pieces[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=pieces[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=pieces[fields["tokenizer.ggml.padding_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"],
    )
