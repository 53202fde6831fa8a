"""Qwen2-MoE for the demo model: heads of the config's `head_dim`, and capture of features for a draft.

SGLang's own class (`sglang/srt/models/qwen2_moe.py`) divides hidden size by heads, has no DFlash capture method, and
adds its shared expert with a Triton kernel. Loads standard Qwen2-MoE weights.
"""

from typing import Any

import torch
from sglang.srt.layers.linear import QKVParallelLinear, RowParallelLinear
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.models import qwen2_moe
from sglang.srt.models.qwen2_moe import (
    Qwen2MoeAttention,
    Qwen2MoeDecoderLayer,
    Qwen2MoeForCausalLM,
    Qwen2MoeModel,
    fused_gate_sigmoid_mul_add,
)
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils.common import add_prefix
from sglang.srt.utils.hf_transformers.common import get_rope_config
from torch import nn


class HeadDimAttention(Qwen2MoeAttention):
    """Attention whose heads together may be wider than the hidden size."""

    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str) -> None:
        # The parent derives head_dim, rotary table and cache shape from hidden_size / num_heads. With the width of all
        # heads as hidden_size they come out right; then the two projections are rebuilt with the true hidden size.
        rope_theta, rope_scaling = get_rope_config(config)
        width = config.num_attention_heads * config.head_dim
        super().__init__(
            hidden_size=width,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            layer_id=layer_id,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            max_position_embeddings=config.max_position_embeddings,
            qkv_bias=config.qkv_bias,
            quant_config=quant_config,
            prefix=prefix,
        )
        self.hidden_size = config.hidden_size
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=config.qkv_bias,
            quant_config=quant_config,
            parallel_group="attn_tp",
            prefix=add_prefix("qkv_proj", prefix),
        )
        self.o_proj = RowParallelLinear(
            width,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            parallel_group="attn_tp",
            reduce_results=False,
            prefix=add_prefix("o_proj", prefix),
        )


class HeadDimDecoderLayer(Qwen2MoeDecoderLayer):
    """SGLang's layer with our attention."""

    def __init__(self, config: Any, layer_id: int, **options: Any) -> None:
        super().__init__(config, layer_id, **options)
        prefix = add_prefix("self_attn", options["prefix"])
        self.self_attn = HeadDimAttention(config, layer_id, options["quant_config"], prefix)


class SparktierQwen2MoeForCausalLM(Qwen2MoeForCausalLM):
    """The demo model; SGLang finds it by this name in `architectures` of a checkpoint's config.json."""

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        # Skips the parent's __init__, which takes no layer type and would allocate a second model.
        nn.Module.__init__(self)
        self.pp_group = get_parallel().pp_group
        self.config = config
        self.quant_config = quant_config
        self.model = Qwen2MoeModel(
            config, quant_config, prefix=add_prefix("model", prefix), decoder_layer_type=HeadDimDecoderLayer
        )
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=quant_config,
            prefix=add_prefix("lm_head", prefix),
            use_attn_tp_group=get_parallel().enable_dp_lm_head,
        )
        self.logits_processor = LogitsProcessor(config)
        self.capture_aux_hidden_states = False

    def get_input_embeddings(self) -> nn.Module:
        """The embedding that a draft model shares."""
        embedding: nn.Module = self.model.embed_tokens
        return embedding

    def set_dflash_layers_to_capture(self, layer_ids: list[int]) -> None:
        """Also return the hidden states after each of these 0-based layers; the last layer's can't be captured."""
        self.set_eagle3_layers_to_capture(layer_ids)


def gate_sigmoid_mul_add(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """Add sigmoid(hidden . gate) * shared to `final_hidden_states` in place, in float32.

    Shapes [tokens, hidden], [hidden], [tokens, hidden], [tokens, hidden]. SGLang's Triton kernel where there is a GPU.
    """
    if not hidden_states.is_cpu:
        fused_gate_sigmoid_mul_add(hidden_states, gate_weight, shared_output, final_hidden_states)
        return
    gate = torch.sigmoid(hidden_states.float() @ gate_weight.float())
    final_hidden_states.copy_(torch.addcmul(final_hidden_states.float(), gate[:, None], shared_output.float()))


# Qwen2MoeSparseMoeBlock.forward looks the kernel up by its module's name.
qwen2_moe.fused_gate_sigmoid_mul_add = gate_sigmoid_mul_add

EntryClass = SparktierQwen2MoeForCausalLM
