"""EAGLE-3 and MTP-1 by their definitions: one place, one head and one key at a time, for autograd too."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.model.recurrent import RecurrentModel


def slow_logits(model: RecurrentModel, record: FeatureRecord, anchor: int, read: list[int]) -> Tensor:
    """Return logits [gamma, vocab] of the block at `anchor`, whose row k reads the token `read[k]`."""
    places: list[tuple[Tensor, Tensor]] = []
    for place in range(anchor - 1):
        places.append(_place(model, _target_state(model, record, place), int(record.token_ids[place + 1])))
    state, rows = _target_state(model, record, anchor - 1), []
    for token in read:
        places.append(_place(model, state, token))
        state = _output(model, places)
        rows.append(model.lm_head.weight @ _normed(state, model.norm.weight))
    return torch.stack(rows)


def slow_greedy(model: RecurrentModel, record: FeatureRecord, anchor: int) -> list[int]:
    """Return the tokens that the block at `anchor` drafts, each read by the row after it."""
    read = [int(record.token_ids[anchor])]
    while len(read) <= model.config.block_size:
        read.append(int(slow_logits(model, record, anchor, read)[-1].argmax()))
    return read[1:]


def slow_loss(draft: Tensor, target: Tensor, *, soft: bool, decay: float) -> Tensor:
    """Return the sum over rows k of decay**k * cross entropy against p of the target's logits, or its likeliest token.

    draft, target: [gamma, vocab].
    """
    total = torch.zeros(())
    for row in range(len(draft)):
        q, p = draft[row].softmax(dim=0), target[row].softmax(dim=0)
        if not soft:
            p = functional.one_hot(p.argmax(), len(p)).float()
        total = total - decay**row * sum(p[token] * q[token].log() for token in range(len(p)))
    return total


def _target_state(model: RecurrentModel, record: FeatureRecord, place: int) -> Tensor:
    if model.config.method == "mtp":
        return record.last_hidden[place]
    return model.fc.weight @ record.features[place]


def _place(model: RecurrentModel, state: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """The stream of a place, and what attention reads of it."""
    embedding = _normed(model.embed_tokens.weight[token], model.embed_norm.weight)
    both = torch.cat((embedding, _normed(state, model.hidden_norm.weight)))
    if model.config.method == "eagle3":
        return state, both
    stream = model.fc.weight @ both
    return stream, _normed(stream, model.input_norm.weight)


def _output(model: RecurrentModel, places: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The layer's output at the last place, which sees all before it."""
    config, layer = model.config, model._layer
    stream, entry = places[-1]
    attention, mixed = layer.self_attn, []
    share = config.num_attention_heads // config.num_key_value_heads
    for head in range(config.num_attention_heads):
        query = _turned(_normed(_of_head(attention.q_proj.weight, entry, head, config.head_dim),
                                attention.q_norm.weight), len(places) - 1, config.rope_theta)  # fmt: skip
        scores, values = [], []
        for position, (_, other) in enumerate(places):
            key = _of_head(attention.k_proj.weight, other, head // share, config.head_dim)
            key = _turned(_normed(key, attention.k_norm.weight), position, config.rope_theta)
            scores.append(query @ key / math.sqrt(config.head_dim))
            values.append(_of_head(attention.v_proj.weight, other, head // share, config.head_dim))
        weights = torch.stack(scores).softmax(dim=0)
        mixed.append(sum((weight * value for weight, value in zip(weights, values, strict=True)), torch.zeros(())))
    attended = stream + attention.o_proj.weight @ torch.cat(mixed)
    seen = _normed(attended, layer.post_attention_layernorm.weight)
    gated = functional.silu(layer.mlp.gate_proj.weight @ seen) * (layer.mlp.up_proj.weight @ seen)
    return attended + layer.mlp.down_proj.weight @ gated


def _of_head(weight: Tensor, vector: Tensor, head: int, size: int) -> Tensor:
    return weight[head * size : (head + 1) * size] @ vector


def _normed(vector: Tensor, weight: Tensor) -> Tensor:
    return weight * vector / (vector.square().mean() + 1e-6).sqrt()


def _turned(vector: Tensor, position: int, theta: float) -> Tensor:
    half = len(vector) // 2
    left, right = vector[:half], vector[half:]
    angles = torch.tensor([position * theta ** (-i / half) for i in range(half)])
    return torch.cat((left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()))
