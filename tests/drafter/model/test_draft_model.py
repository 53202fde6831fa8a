"""The draft model against a slow reference that runs one block at a time with loops and no masks.

The reference shares parameters with the model and nothing else: attention per row and head, recurrence per token.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparktier.drafter.data.packing import FeatureRecord, pack
from sparktier.drafter.model.config import MarkovType
from sparktier.drafter.model.draft_model import DraftModel
from support.drafts import loud_model, random_record, tiny_config

TOLERANCE = 2e-4


def rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * weight


def turn(x: Tensor, position: int, theta: float) -> Tensor:
    """Rotate one head's vector pair by pair, with complex numbers."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        value = complex(x[i], x[i + half]) * complex(math.cos(angle), math.sin(angle))
        out[i], out[i + half] = value.real, value.imag
    return out


class SlowDraft:
    """One block at one anchor of one sequence."""

    def __init__(self, model: DraftModel) -> None:
        self.p = {name: value.detach() for name, value in model.state_dict().items()}
        self.c = model.config

    def heads(self, x: Tensor, layer: int, kind: str, position: int) -> list[Tensor]:
        vector = self.p[f"layers.{layer}.self_attn.{kind}_proj.weight"] @ x
        parts = list(vector.split(self.c.head_dim))
        if kind == "v":
            return parts
        norm = self.p[f"layers.{layer}.self_attn.{kind}_norm.weight"]
        return [turn(rms(part, norm), position, self.c.rope_theta) for part in parts]

    def attend(self, rows: list[Tensor], context: list[Tensor], layer: int, anchor: int) -> list[Tensor]:
        seen = [(x, i) for i, x in enumerate(context[:anchor])] + [(x, anchor + k) for k, x in enumerate(rows)]
        keys = [self.heads(x, layer, "k", place) for x, place in seen]
        values = [self.heads(x, layer, "v", place) for x, place in seen]
        group = self.c.num_attention_heads // self.c.num_key_value_heads
        out = []
        for k, row in enumerate(rows):
            mixed = []
            for head, query in enumerate(self.heads(row, layer, "q", anchor + k)):
                scores = torch.stack([query @ key[head // group] for key in keys]) / math.sqrt(self.c.head_dim)
                mixed.append(sum(w * v[head // group] for w, v in zip(scores.softmax(0), values, strict=True)))
            out.append(self.p[f"layers.{layer}.self_attn.o_proj.weight"] @ torch.cat(mixed))
        return out

    def hidden(self, record: FeatureRecord, anchor: int) -> list[Tensor]:
        context = [rms(self.p["fc.weight"] @ x, self.p["hidden_norm.weight"]) for x in record.features]
        ids = [int(record.token_ids[anchor])] + [self.c.mask_token_id] * (self.c.block_size - 1)
        rows = [self.p["embed_tokens.weight"][i] for i in ids]
        for layer in range(self.c.num_hidden_layers):
            name = f"layers.{layer}."
            normed = [rms(x, self.p[name + "input_layernorm.weight"]) for x in rows]
            rows = [x + y for x, y in zip(rows, self.attend(normed, context, layer, anchor), strict=True)]
            for k, row in enumerate(rows):
                x = rms(row, self.p[name + "post_attention_layernorm.weight"])
                gate, up = self.p[name + "mlp.gate_proj.weight"] @ x, self.p[name + "mlp.up_proj.weight"] @ x
                rows[k] = row + self.p[name + "mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up)
        return [rms(x, self.p["norm.weight"]) for x in rows]

    def bias(self, token: int, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Equations 4 and 5 of the DSpark paper for one row."""
        code, p = self.p["markov_head.markov_w1.weight"][token], self.p
        if self.c.markov_head_type == "rnn":
            joint = p["markov_head.joint_proj.weight"] @ torch.cat([state, code, hidden])
            gate, candidate, output = (joint + p["markov_head.joint_proj.bias"]).split(self.c.markov_rank)
            state = torch.sigmoid(gate) * state + (1 - torch.sigmoid(gate)) * torch.tanh(candidate)
            code = torch.tanh(output)
        if self.c.markov_head_type == "gated":
            gate = p["markov_head.gate_proj.weight"] @ torch.cat([hidden, code]) + p["markov_head.gate_proj.bias"]
            code = torch.sigmoid(gate) * code
        return p["markov_head.markov_w2.weight"] @ code, state

    def rows(self, record: FeatureRecord, anchor: int, follow: list[int] | None) -> tuple[list[Tensor], list[int]]:
        """Return corrected logits per row and the tokens they lead to: `follow`, or the likeliest ones."""
        token, state = int(record.token_ids[anchor]), torch.zeros(max(self.c.markov_rank, 1))
        logits, tokens = [], []
        for k, hidden in enumerate(self.hidden(record, anchor)):
            row = self.p["lm_head.weight"] @ hidden
            if self.c.markov_rank:
                bias, state = self.bias(token, hidden, state)
                row = row + bias
            token = follow[k] if follow else int(row.argmax())
            logits.append(row)
            tokens.append(token)
        return logits, tokens


HEADS = [None, "vanilla", "gated", "rnn"]


@pytest.mark.parametrize("markov", HEADS)
def test_teacher_forced_rows_equal_slow_reference_in_a_packed_row(markov: MarkovType | None) -> None:
    model = loud_model(tiny_config(markov))
    records = [random_record(model.config, length, 3, seed) for seed, length in enumerate((9, 14, 11))]
    row = pack(records)
    starts = [0, 9, 23]
    anchors = torch.tensor([3, 9 + 4, 9 + 8, 23 + 5])
    output = model(row, anchors)
    slow = SlowDraft(model)
    for index, (segment, local) in enumerate([(0, 3), (1, 4), (1, 8), (2, 5)]):
        record = records[segment]
        follow = [int(row.token_ids[min(starts[segment] + local + k + 1, 33)]) for k in range(5)]
        expected, _ = slow.rows(record, local, follow)
        valid = output.valid[index]
        assert valid.tolist() == [local + k + 1 < len(record.token_ids) for k in range(5)]
        torch.testing.assert_close(output.draft_logits[index], torch.stack(expected), atol=TOLERANCE, rtol=TOLERANCE)
        sources = [model.lm_head.weight @ record.last_hidden[local + k] for k in range(int(valid.sum()))]
        torch.testing.assert_close(output.target_logits[index][valid], torch.stack(sources).detach())
        assert output.tokens[index][valid].tolist() == follow[: int(valid.sum())]


@pytest.mark.parametrize("markov", HEADS)
def test_greedy_draft_equals_slow_reference(markov: MarkovType | None) -> None:
    model = loud_model(tiny_config(markov))
    record = random_record(model.config, 12, 2, 7)
    context = model.context(record.features[None], torch.arange(12)[None])
    mask = torch.cat((torch.arange(12).expand(5, 12) < 8, torch.ones(5, 5, dtype=torch.bool)), dim=1)[None]
    hidden = model.blocks(record.token_ids[None, 8:9], torch.tensor([[8]]), context, mask)[0]
    draft = model.draft(hidden, record.token_ids[8:9])
    logits, tokens = SlowDraft(model).rows(record, 8, None)
    assert draft.tokens[0].tolist() == tokens
    torch.testing.assert_close(draft.logits[0], torch.stack(logits), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("markov", ["vanilla", "rnn"])
def test_confidence_reads_the_token_before_and_never_its_own(markov: MarkovType) -> None:
    model = loud_model(tiny_config(markov))
    hidden, previous = torch.randn(1, 5, 32), torch.randint(0, 97, (1, 5))
    confidence = model.confidence(hidden, previous)
    assert confidence is not None
    code = model.state_dict()["markov_head.markov_w1.weight"][previous[0, 2]]
    weight, bias = model.state_dict()["confidence_head.proj.weight"][0], model.state_dict()["confidence_head.proj.bias"]
    assert confidence[0, 2].item() == pytest.approx((weight @ torch.cat([hidden[0, 2], code]) + bias).item(), abs=1e-5)
    draft = model.draft(hidden, previous[:, 0])
    assert draft.confidence is not None
    own = model.confidence(hidden, torch.cat((previous[:, :1], draft.tokens[:, :-1]), dim=1))
    assert own is not None
    torch.testing.assert_close(draft.confidence, own)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(4, 14), min_size=1, max_size=4), st.integers(0, 1000))
def test_packing_changes_nothing(lengths: list[int], seed: int) -> None:
    """Every block of a packed row equals the block of its sequence alone."""
    model = loud_model(tiny_config("rnn"))
    records = [random_record(model.config, length, 1, seed + i) for i, length in enumerate(lengths)]
    anchors = [torch.tensor([1, length - 2]) for length in lengths]
    offsets = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    packed = model(pack(records), torch.cat([a + o for a, o in zip(anchors, offsets, strict=True)]))
    alone = [model(pack([record]), anchor) for record, anchor in zip(records, anchors, strict=True)]
    valid = torch.cat([output.valid for output in alone])
    assert torch.equal(packed.valid, valid)
    expected = torch.cat([output.draft_logits for output in alone])
    torch.testing.assert_close(packed.draft_logits[valid], expected[valid], atol=TOLERANCE, rtol=TOLERANCE)


def test_a_block_sees_nothing_at_or_after_its_anchor() -> None:
    model = loud_model(tiny_config("vanilla"))
    record = random_record(model.config, 12, 2, 3)
    anchor = torch.tensor([6])
    before = model(pack([record]), anchor).draft_logits
    record.features[6:] += 100.0
    after = model(pack([record]), anchor).draft_logits
    assert torch.equal(before, after)
    record.features[5] += 1.0
    assert not torch.equal(model(pack([record]), anchor).draft_logits, after)


def test_only_the_drafters_own_parameters_train() -> None:
    model = loud_model(tiny_config("gated"))
    row = pack([random_record(model.config, 12, 2, 3)])
    output = model(row, torch.tensor([4]))
    assert output.confidence is not None
    (output.draft_logits.square().sum() + output.confidence.sum()).backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert still == {"embed_tokens.weight", "lm_head.weight"}
