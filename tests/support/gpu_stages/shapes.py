"""Models that are measured with random weights: their shapes as `config.json`, of target and draft, without weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparktier.drafter.model.config import DraftConfig


@dataclass(frozen=True)
class ModelShape:
    """A mixture of experts of Qwen3's family, and a DSpark draft of `draft_layers` for it."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    expert_intermediate: int
    vocab: int
    draft_layers: int
    draft_intermediate: int
    block: int = 5
    dtype: str = "bfloat16"

    def target(self) -> dict[str, Any]:
        """Return the target's `config.json`."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "intermediate_size": 3 * self.hidden,
            "moe_intermediate_size": self.expert_intermediate,
            "num_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "max_position_embeddings": 40_960,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "dtype": self.dtype,
        }

    def draft(self) -> dict[str, Any]:
        """Return the draft's `config.json`: layers as the target's without experts, features of five of its layers."""
        spread = {round(place * (self.layers - 2) / 4) for place in range(5)}
        config = DraftConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.draft_layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.draft_intermediate,
            vocab_size=self.vocab,
            block_size=self.block,
            num_target_layers=self.layers,
            target_layer_ids=tuple(sorted(spread)),
            mask_token_id=2,
            rope_theta=1_000_000.0,
            max_position_embeddings=40_960,
            enable_confidence_head=False,
            confidence_head_with_markov=False,
        )
        return config.to_hf() | {"dtype": self.dtype}

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both configs under `folder`; return the folders of target and draft."""
        made = []
        for name, config in (("target", self.target()), ("draft", self.draft())):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "config.json").write_text(json.dumps(config, indent=2))
            made.append(folder / name)
        return made[0], made[1]

    def weight_bytes(self, width: int = 2) -> int:
        """Return the bytes of the target's weights, of `width` bytes each."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads) + 2 * self.head_dim
        expert = 3 * self.hidden * self.expert_intermediate
        layer = attention + self.experts * (expert + self.hidden) + 2 * self.hidden
        return width * (self.layers * layer + 2 * self.vocab * self.hidden + self.hidden)


SHAPES = {
    "qwen3-30b-a3b": ModelShape(48, 2048, 32, 4, 128, 128, 8, 768, 151_936, draft_layers=5, draft_intermediate=6144),
    "tiny": ModelShape(6, 64, 4, 2, 32, 8, 2, 32, 512, draft_layers=2, draft_intermediate=128, dtype="float32"),
}
