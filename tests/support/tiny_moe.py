"""Writes a seeded tiny Qwen3-MoE checkpoint for fast tests.

The weights are random, yet shaped for tests: experts and router differ enough that a routing bug changes tokens,
attention is sharp enough that greedy output depends on the whole context, and that output is readable ASCII that never
ends by itself.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 512
SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if style or reasoning_effort %}<|im_start|>system\n{{ style }}{{ reasoning_effort }}<|im_end|>\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Larger than 1 makes attention pick few positions: a flat average over random values would forget the context.
QK_NORM_GAIN = 2.0
LOGIT_STD = 3.0


def make_tiny_moe(
    directory: Path,
    *,
    seed: int = 0,
    layers: int = 4,
    hidden: int = 128,
    experts: int = 8,
    experts_per_token: int = 2,
    expert_intermediate: int = 64,
    context_gain: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write config, weights and tokenizer under `directory` and return it.

    4 query and 2 key-value heads of dim 32, untied lm_head, context 8192, vocabulary 512: divisible by 2 ranks.
    `context_gain` scales what attention and experts add to the residual stream: well below 1, the next token mostly
    follows from the last one, so that a drafter can guess it. The same arguments give the same weights. `<|mask|>` is a
    spare id for draft models.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(directory)
    config = _config(layers, hidden, experts, experts_per_token, expert_intermediate, tokenizer)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    (directory / "generation_config.json").write_text(
        json.dumps({"bos_token_id": tokenizer.bos_token_id, "eos_token_id": stops})
    )
    weights = {name: tensor.to(dtype) for name, tensor in _weights(config, _printable_ids(tokenizer), seed).items()}
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor *= context_gain
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _config(
    layers: int, hidden: int, experts: int, top_k: int, intermediate: int, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "attention_bias": False,
        "intermediate_size": 4 * hidden,
        "moe_intermediate_size": intermediate,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _weights(config: dict[str, Any], printable: list[int], seed: int) -> dict[str, torch.Tensor]:
    """Every projection keeps unit variance, so each block moves the residual stream as much as the embedding does."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * (gain / columns**0.5)

    hidden, inner, experts = (config[key] for key in ("hidden_size", "moe_intermediate_size", "num_experts"))
    weights = {
        "model.embed_tokens.weight": torch.randn(VOCAB_SIZE, hidden, generator=generator),
        "model.norm.weight": torch.ones(hidden),
        # A zero row scores 0, far below the best of some hundred random ones: never greedy, rarely sampled.
        "lm_head.weight": torch.zeros(VOCAB_SIZE, hidden),
    }
    weights["lm_head.weight"][printable] = normal(len(printable), hidden, LOGIT_STD)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights[prefix + "input_layernorm.weight"] = torch.ones(hidden)
        weights[prefix + "post_attention_layernorm.weight"] = torch.ones(hidden)
        weights[prefix + "self_attn.q_proj.weight"] = normal(128, hidden)
        weights[prefix + "self_attn.k_proj.weight"] = normal(64, hidden)
        weights[prefix + "self_attn.v_proj.weight"] = normal(64, hidden)
        weights[prefix + "self_attn.o_proj.weight"] = normal(hidden, 128)
        weights[prefix + "self_attn.q_norm.weight"] = torch.full((32,), QK_NORM_GAIN)
        weights[prefix + "self_attn.k_norm.weight"] = torch.full((32,), QK_NORM_GAIN)
        weights[prefix + "mlp.gate.weight"] = normal(experts, hidden, 2.0)
        for expert in range(experts):
            name = f"{prefix}mlp.experts.{expert}."
            weights[name + "gate_proj.weight"] = normal(inner, hidden, 2.0)
            weights[name + "up_proj.weight"] = normal(inner, hidden, 2.0)
            weights[name + "down_proj.weight"] = normal(hidden, inner)
    return weights


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over syllables: consonant + vowel, and both with a space before; no training, no download."""
    consonants, vowels, space = "bcdfghjklmnpqrstvwxyz", "aeiou", "Ġ"
    syllables = [(consonant, vowel) for consonant in consonants for vowel in vowels]
    merges = syllables + [(space, consonant + vowel) for consonant, vowel in syllables]
    merges += [(space, letter) for letter in consonants + vowels]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in merges)]
    backend = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[1],
        pad_token=SPECIAL_TOKENS[1],
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def _printable_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that decode to printable ASCII: any sequence of them is text that a stream can show at once."""
    ids = range(len(SPECIAL_TOKENS), len(tokenizer))
    return [index for index in ids if (text := tokenizer.decode([index])).isascii() and text.isprintable()]
