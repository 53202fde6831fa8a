"""The DSpark draft model: target features in, blocks of draft logits and confidences out.

Joins backbone and heads for training (`forward`) and for drafting (`context`, `blocks`, `draft`). DFlash is the same
model without heads (markov_rank 0).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparktier.drafter.data.packing import PackedRow, block_labels, block_mask
from sparktier.drafter.model.backbone import ContextKV, DraftLayer, RMSNorm, rotary
from sparktier.drafter.model.config import DraftConfig
from sparktier.drafter.model.heads import build_confidence_head, build_markov_head
from sparktier.drafter.model.sampled_vocab import VocabSample

FROZEN = ("embed_tokens.", "lm_head.")
INIT_STD = 0.02


@dataclass(frozen=True)
class BlockOutput:
    """What a training forward yields for A blocks of gamma rows.

    draft_logits and target_logits [A, gamma, vocab], or [A, gamma, C] and weighted if only a sample was asked for;
    tokens [A, gamma], the target's own, as indices of the last dimension; valid [A, gamma];
    confidence [A, gamma] raw logits, or None without the head.
    """

    draft_logits: Tensor
    target_logits: Tensor
    tokens: Tensor
    valid: Tensor
    confidence: Tensor | None


@dataclass(frozen=True)
class Draft:
    """A drafted block for each of B requests: tokens [B, gamma], the corrected logits they were chosen from
    [B, gamma, vocab], and raw confidence logits [B, gamma] or None."""

    tokens: Tensor
    logits: Tensor
    confidence: Tensor | None


Choose = Callable[[Tensor], Tensor]


def greedy(logits: Tensor) -> Tensor:
    """Choose the likeliest token of [..., vocab]."""
    return logits.argmax(dim=-1)


class DraftModel(nn.Module):
    """The whole draft. Parameter names are DeepSpec's; `embed_tokens` and `lm_head` are the target's, frozen."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.fc = nn.Linear(config.feature_size, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.layers = nn.ModuleList(DraftLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.markov_head = build_markov_head(config)
        self.confidence_head = build_confidence_head(config)
        self.embed_tokens.requires_grad_(False)
        self.lm_head.requires_grad_(False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every trainable matrix from N(0, 0.02), as transformers does for Qwen3; norms stay 1 and biases 0."""
        for name, parameter in self.named_parameters():
            if name.startswith(FROZEN):
                continue
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def set_target_tables(self, embedding: Tensor, head: Tensor) -> None:
        """Adopt the target's embedding and output tables, each [vocab, hidden], in their own dtype."""
        self.embed_tokens.weight = nn.Parameter(embedding, requires_grad=False)
        self.lm_head.weight = nn.Parameter(head, requires_grad=False)

    def _draft_layers(self) -> list[DraftLayer]:
        return [layer for layer in self.layers if isinstance(layer, DraftLayer)]

    def context(self, features: Tensor, positions: Tensor) -> list[ContextKV]:
        """Make every layer's keys and values of [batch, seq, K*hidden] features at [batch, seq] positions."""
        projected = self.hidden_norm(self.fc(features.to(self.fc.weight.dtype)))
        turn = rotary(positions, self.config)
        return [layer.self_attn.key_values(projected, turn) for layer in self._draft_layers()]

    def context_of(self, row: PackedRow) -> list[ContextKV]:
        """Return `context` of a packed row."""
        return self.context(row.features.unsqueeze(0), row.positions.unsqueeze(0))

    def at_anchors(self, row: PackedRow, anchors: Tensor, context: list[ContextKV]) -> Tensor:
        """Run the blocks at `anchors` [A] of a row of one sequence, each as a batch entry: [A, gamma, hidden]."""
        gamma, seen = self.config.block_size, torch.arange(len(row.token_ids), device=anchors.device)
        shared = [ContextKV(*(part.expand(len(anchors), -1, -1, -1) for part in layer)) for layer in context]
        before = (seen < anchors.unsqueeze(1)).unsqueeze(1).expand(-1, gamma, -1)
        mask = torch.cat((before, before.new_ones(len(anchors), gamma, gamma)), dim=2)
        hidden = self.blocks(row.token_ids[anchors].unsqueeze(1), row.positions[anchors].unsqueeze(1), shared, mask)
        return hidden.squeeze(1)

    def follow(
        self, row: PackedRow, anchors: Tensor, hidden: Tensor, context: list[ContextKV], previous: Tensor
    ) -> Tensor:
        """Return logits [A, gamma, vocab] at `anchors`, where `at_anchors` gave `hidden`, after tokens `previous`."""
        del row, anchors, context
        return self.teacher_forced(hidden, previous)

    def propose(
        self, row: PackedRow, anchors: Tensor, hidden: Tensor, context: list[ContextKV], choose: Choose = greedy
    ) -> Draft:
        """Draft at `anchors`, where `at_anchors` gave `hidden`."""
        del context
        return self.draft(hidden, row.token_ids[anchors], choose)

    def blocks(self, anchor_tokens: Tensor, anchor_positions: Tensor, context: list[ContextKV], mask: Tensor) -> Tensor:
        """Run blocks of an anchor and gamma-1 mask tokens.

        Args:
            anchor_tokens: [batch, A] the last committed token of each block.
            anchor_positions: [batch, A] its position.
            context: from `context`.
            mask: [batch, A*gamma, seq + A*gamma] bool, true where a row may attend.

        Returns:
            [batch, A, gamma, hidden]; row k predicts offset k+1.
        """
        batch, count = anchor_tokens.shape
        gamma = self.config.block_size
        tokens = anchor_tokens.new_full((batch, count, gamma), self.config.mask_token_id)
        tokens[:, :, 0] = anchor_tokens
        offsets = torch.arange(gamma, device=anchor_positions.device)
        positions = (anchor_positions.unsqueeze(-1) + offsets).flatten(1)
        hidden = self.embed_tokens(tokens.flatten(1)).to(self.norm.weight.dtype)
        turn = rotary(positions, self.config)
        for layer, stored in zip(self._draft_layers(), context, strict=True):
            hidden = layer(hidden, turn, stored, mask)
        normed: Tensor = self.norm(hidden)
        return normed.view(batch, count, gamma, -1)

    def base_logits(self, hidden: Tensor, sample: VocabSample | None = None) -> Tensor:
        """Return the target head's fp32 logits of [..., hidden], before Markov correction; weighted in a `sample`."""
        table = self.lm_head.weight
        if sample is None:
            return functional.linear(hidden.to(table.dtype), table).float()
        return functional.linear(hidden.to(table.dtype), table[sample.ids]).float() + sample.log_weights

    def confidence(self, hidden: Tensor, previous: Tensor) -> Tensor | None:
        """Return raw confidence logits [...] of rows [..., hidden] that follow tokens `previous` [...]."""
        if self.confidence_head is None:
            return None
        confidence: Tensor = self.confidence_head(self.confidence_inputs(hidden, previous))
        return confidence

    def confidence_inputs(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Return what the confidence head reads of the same rows, [..., hidden] or [..., hidden + rank]."""
        if self.markov_head is None or not self.config.confidence_head_with_markov:
            return hidden
        return torch.cat((hidden, self.markov_head.markov_w1(previous).to(hidden.dtype)), dim=-1)

    def teacher_forced(self, hidden: Tensor, previous: Tensor, sample: VocabSample | None = None) -> Tensor:
        """Return corrected logits [..., gamma, vocab] given the tokens before each row, `previous` [..., gamma]."""
        logits = self.base_logits(hidden, sample)
        if self.markov_head is None:
            return logits
        table = self.markov_head.markov_w2.weight
        codes = self.markov_head.codes(previous, hidden)
        return logits + functional.linear(codes, table if sample is None else table[sample.ids])

    def draft(self, hidden: Tensor, anchor_tokens: Tensor, choose: Choose = greedy) -> Draft:
        """Draft [B, gamma] tokens one row after the other from block outputs [B, gamma, hidden].

        `choose` maps corrected logits [B, vocab] to tokens [B]; a sampler closes over its own generator.
        """
        base = self.base_logits(hidden)
        state = None if self.markov_head is None else self.markov_head.initial_state(hidden[:, 0])
        previous, tokens, rows = anchor_tokens, [anchor_tokens], []
        for row in range(hidden.shape[1]):
            logits = base[:, row]
            if self.markov_head is not None:
                bias, state = self.markov_head.step(previous, hidden[:, row], state)
                logits = logits + bias
            previous = choose(logits)
            tokens.append(previous)
            rows.append(logits)
        seen = torch.stack(tokens[:-1], dim=1)
        return Draft(torch.stack(tokens[1:], dim=1), torch.stack(rows, dim=1), self.confidence(hidden, seen))

    def forward(self, row: PackedRow, anchors: Tensor, sample: VocabSample | None = None) -> BlockOutput:
        """Run the blocks at `anchors` [A] of one packed row, teacher-forced; `sample` must hold the row's tokens."""
        gamma = self.config.block_size
        context = self.context(row.features.unsqueeze(0), row.positions.unsqueeze(0))
        mask = block_mask(row, anchors, gamma).unsqueeze(0)
        anchor_tokens, places = row.token_ids[anchors], row.positions[anchors]
        hidden = self.blocks(anchor_tokens.unsqueeze(0), places.unsqueeze(0), context, mask).squeeze(0)
        labels = block_labels(row, anchors, gamma)
        previous = torch.cat((anchor_tokens.unsqueeze(-1), labels.tokens[:, :-1]), dim=1)
        with torch.no_grad():
            target_logits = self.base_logits(row.last_hidden[labels.sources], sample)
        return BlockOutput(
            draft_logits=self.teacher_forced(hidden, previous, sample),
            target_logits=target_logits,
            tokens=labels.tokens if sample is None else sample.index_of(labels.tokens),
            valid=labels.valid,
            confidence=self.confidence(hidden, previous),
        )
