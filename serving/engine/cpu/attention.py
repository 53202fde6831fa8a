"""Attention on CPUs: prompts, single tokens, drafted chains and trees, and the draft model's own block.

Extends SGLang's torch backend, which has no verify pass, recomputes a whole sequence for every prompt chunk, and reads
lengths from tensors in every layer. Here the metadata is computed once per forward.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparktier.kernels.mask import unpacked

NAME = "sparktier_cpu"


@dataclass(frozen=True)
class Segment:
    """One request's part of a forward: rows `start:end` of the queries attend to `slots` of the KV pool.

    `mask` [rows, len(slots)] bool, True = attend; None lets every row see every slot.
    """

    start: int
    end: int
    slots: Tensor
    mask: Tensor | None


class CpuAttention(TorchNativeAttnBackend):
    """Scaled dot-product attention, one call per request and layer."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._segments: list[Segment] = []
        self._block_segments: list[Segment] = []

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Compute which rows attend to which slots in the next forward."""
        super().init_forward_metadata(forward_batch)
        mode = forward_batch.forward_mode
        if mode.is_idle():
            self._segments = []
        elif mode.is_target_verify():
            self._segments = _verify_segments(forward_batch, self.req_to_token_pool.req_to_token)
        elif mode.is_decode():
            lengths = forward_batch.seq_lens.tolist()
            self._segments = self._causal(forward_batch, [(length - 1, 1) for length in lengths])
        else:
            prefixes, rows = forward_batch.extend_prefix_lens.tolist(), forward_batch.extend_seq_lens.tolist()
            self._segments = self._causal(forward_batch, list(zip(prefixes, rows, strict=True)))

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save_kv_cache: bool = True
    ) -> Any:
        """Store k and v, then attend: one row per request."""
        return self._attend(q, k, v, layer, batch, save_kv_cache)

    def forward_extend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save_kv_cache: bool = True
    ) -> Any:
        """Store k and v, then attend: prompt chunks, verify rows, or a draft block."""
        return self._attend(q, k, v, layer, batch, save_kv_cache)

    def get_cpu_graph_seq_len_fill_value(self) -> int:
        """Return the length of padding requests: one token, in SGLang's scratch slot."""
        return 1

    def _causal(self, forward_batch: Any, spans: list[tuple[int, int]]) -> list[Segment]:
        segments, start = [], 0
        table = self.req_to_token_pool.req_to_token
        for request, (prefix, rows) in zip(forward_batch.req_pool_indices.tolist(), spans, strict=True):
            slots = table[request, : prefix + rows].long()
            segments.append(Segment(start, start + rows, slots, causal_mask(prefix, rows)))
            start += rows
        return segments

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save_kv_cache: bool) -> Tensor:
        if save_kv_cache and k is not None and v is not None:
            place = KVWriteLoc(batch.out_cache_loc, self.swa_out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, place, k, v)
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = queries.new_empty(queries.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        values = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        bidirectional = layer.attn_type == AttentionType.ENCODER_ONLY
        for part in self._segments:
            output[part.start : part.end] = _segment_attention(
                queries[part.start : part.end],
                keys[part.slots],
                values[part.slots],
                None if bidirectional else _windowed(part.mask, layer.sliding_window_size),
                layer.scaling,
            )
        return output.view(q.shape[0], -1)


def causal_mask(prefix: int, rows: int) -> Tensor | None:
    """Return [rows, prefix + rows] bool: a row sees the prefix and the rows up to itself. None for a single row."""
    if rows == 1:
        return None
    return torch.ones(rows, prefix + rows, dtype=torch.bool).tril_(prefix)


def _verify_segments(forward_batch: Any, table: Tensor) -> list[Segment]:
    """Return the segments of a verify pass or a draft block, whose requests may have different numbers of rows.

    `spec_info.ancestor_words`, set for trees only, says which rows of its tree each row sees.
    """
    spec = forward_batch.spec_info
    prefixes = forward_batch.seq_lens.tolist()
    layout = getattr(spec, "ragged_verify_layout", None)
    counts = [int(spec.draft_token_num)] * len(prefixes) if layout is None else layout.verify_lens.tolist()
    words = getattr(spec, "ancestor_words", None)
    trees = None if words is None else unpacked(words=words)
    segments, start = [], 0
    requests = forward_batch.req_pool_indices.tolist()
    for place, (request, prefix, rows) in enumerate(zip(requests, prefixes, counts, strict=True)):
        slots = table[request, : prefix + rows].long()
        mask = causal_mask(prefix, rows)
        if trees is not None and mask is not None:
            mask[:, prefix:] = trees[place, :rows, :rows]
        segments.append(Segment(start, start + rows, slots, mask))
        start += rows
    return segments


def _windowed(mask: Tensor | None, window_tokens: int | None) -> Tensor | None:
    if window_tokens is None or window_tokens < 0:
        return mask
    # No model served on CPUs has a window; over tree rows it would need depths instead of slots.
    raise NotImplementedError("The CPU platform serves no model with sliding-window attention.")


def _segment_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """[rows, heads, dim] x [slots, kv_heads, dim] -> [rows, heads, dim]."""
    attended = scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        key.transpose(0, 1).unsqueeze(0).to(query.dtype),
        value.transpose(0, 1).unsqueeze(0).to(query.dtype),
        attn_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.squeeze(0).transpose(0, 1)


def register() -> None:
    """Register the backend with SGLang under NAME."""
    from sglang.srt.arg_groups.choices import add_attention_backend_choices, add_draft_attention_backend_choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    register_attention_backend(NAME)(CpuAttention)
    add_attention_backend_choices([NAME])
    add_draft_attention_backend_choices([NAME])
