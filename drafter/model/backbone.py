"""Qwen3-style draft layers whose attention reads injected target features beside the block itself.

Owns rotary positions, attention, MLP and layer. Architecture: DSpark paper 3.1 and DFlash; parameter names are those of
DeepSpec's and SGLang's checkpoints.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparktier.drafter.model.config import DraftConfig


class ContextKV(NamedTuple):
    """Keys (rotated) and values that one layer made of the target's features: each [batch, kv_heads, seq, head_dim]."""

    keys: Tensor
    values: Tensor


class Rotary(NamedTuple):
    """Cosines and sines of rotary positions, each [batch, 1, rows, head_dim], fp32."""

    cos: Tensor
    sin: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Rotate [batch, heads, rows, head_dim] by halves (the GPT-NeoX arrangement, as Qwen3)."""
        left, right = x.float().chunk(2, dim=-1)
        return (x.float() * self.cos + torch.cat((-right, left), dim=-1) * self.sin).to(x.dtype)


def rotary(positions: Tensor, config: DraftConfig) -> Rotary:
    """Return the rotation for [batch, rows] positions."""
    half = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32) / config.head_dim
    angles = positions.unsqueeze(-1).float() * config.rope_theta**-half
    both = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return Rotary(both.cos(), both.sin())


class RMSNorm(nn.RMSNorm):
    """Normalises in fp32 whatever the input's dtype, as Qwen3 does; under autocast input and weight dtypes differ."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


class DraftAttention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: DraftConfig, width: int | None = None) -> None:
        """`width` is that of what is attended to and from; none: the hidden size."""
        super().__init__()
        self.head_dim, width = config.head_dim, width or config.hidden_size
        wide, narrow = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, wide, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, narrow, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, narrow, bias=config.attention_bias)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=config.attention_bias)
        self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def key_values(self, x: Tensor, turn: Rotary) -> ContextKV:
        """Return this layer's keys and values of [batch, rows, hidden]."""
        keys = turn.apply(self.k_norm(self._heads(self.k_proj(x))))
        return ContextKV(keys, self._heads(self.v_proj(x)))

    def forward(self, x: Tensor, turn: Rotary, context: ContextKV, mask: Tensor) -> Tensor:
        """Attend from [batch, rows, hidden] to context and rows where `mask` [batch, rows, seq+rows] is true."""
        queries = turn.apply(self.q_norm(self._heads(self.q_proj(x))))
        own = self.key_values(x, turn)
        keys = torch.cat((context.keys.to(own.keys.dtype), own.keys), dim=2)
        values = torch.cat((context.values.to(own.values.dtype), own.values), dim=2)
        mixed = functional.scaled_dot_product_attention(
            queries.to(values.dtype), keys.to(values.dtype), values, attn_mask=mask.unsqueeze(1), enable_gqa=True
        )
        joined: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return joined


class DraftMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class DraftLayer(nn.Module):
    """One pre-norm layer. The context is *not* normalised by `input_layernorm`: `hidden_norm` did that once for all."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = DraftAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = DraftMLP(config)

    def forward(self, x: Tensor, turn: Rotary, context: ContextKV, mask: Tensor) -> Tensor:
        attended: Tensor = x + self.self_attn(self.input_layernorm(x), turn, context, mask)
        transformed: Tensor = self.mlp(self.post_attention_layernorm(attended))
        return attended + transformed
