"""Drafts that feed one layer its own output: EAGLE-3 (arXiv 2503.01840) and MTP-1 (DeepSeek-V3, arXiv 2412.19437).

Place t holds the target's state at t and the embedding of token t+1. A block's row 0 is the place before its anchor;
row k has the output of row k-1 for a state, and the token after that. Row k predicts offset k+1, as DSpark's does.

* EAGLE-3: the state is a projection of several layers; attention reads state and embedding side by side.
* MTP-1: the state is the target's last; state and embedding are projected together, and one token is drafted.

Both draft with the target's frozen tables, as DeepSpec's EAGLE-3 does.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparktier.drafter.data.packing import PackedRow, block_labels
from sparktier.drafter.model.backbone import ContextKV, DraftAttention, DraftMLP, RMSNorm, Rotary, rotary
from sparktier.drafter.model.config import DraftConfig
from sparktier.drafter.model.draft_model import BlockOutput, Choose, Draft, DraftModel, greedy
from sparktier.drafter.model.sampled_vocab import VocabSample

# Given a row's number and its logits [A, vocab], the token [A] that the next row reads.
_Next = Callable[[int, Tensor], Tensor]


class RecurrentLayer(nn.Module):
    """Attention over entries [.., width], added to a stream [.., hidden], then an MLP."""

    def __init__(self, config: DraftConfig, width: int) -> None:
        super().__init__()
        self.self_attn = DraftAttention(config, width)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = DraftMLP(config)

    def forward(self, stream: Tensor, entry: Tensor, turn: Rotary, context: ContextKV, mask: Tensor) -> Tensor:
        attended: Tensor = stream + self.self_attn(entry, turn, context, mask)
        transformed: Tensor = self.mlp(self.post_attention_layernorm(attended))
        return attended + transformed


class RecurrentModel(DraftModel):
    """An EAGLE-3 or MTP-1 draft, as `config.method` says."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.embed_norm = RMSNorm(hidden, eps=eps)
        self.input_norm: nn.Module = nn.Identity()
        width = 2 * hidden
        if config.method == "mtp":
            self.fc = nn.Linear(2 * hidden, hidden, bias=False)
            self.input_norm = RMSNorm(hidden, eps=eps)
            width = hidden
        self.layers = nn.ModuleList([RecurrentLayer(config, width)])

    @property
    def _layer(self) -> RecurrentLayer:
        layer = self.layers[0]
        assert isinstance(layer, RecurrentLayer)
        return layer

    def _states(self, row: PackedRow) -> Tensor:
        """The target's state at each place of a row, [S, hidden]."""
        if self.config.method == "mtp":
            return row.last_hidden.to(self.fc.weight.dtype)
        projected: Tensor = self.fc(row.features.to(self.fc.weight.dtype))
        return projected

    def _entries(self, tokens: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """The stream [n, hidden] of n places and what attention reads of it, given states and the tokens after them."""
        embedded = self.embed_tokens(tokens).to(self.norm.weight.dtype)
        both = torch.cat((self.embed_norm(embedded), self.hidden_norm(states)), dim=-1)
        stream = states if self.config.method == "eagle3" else self.fc(both)
        return stream, self.input_norm(both if self.config.method == "eagle3" else stream)

    def context_of(self, row: PackedRow) -> list[ContextKV]:
        """Return the layer's keys and values of every place of a row."""
        _, entry = self._entries(row.token_ids.roll(-1), self._states(row))
        return [self._layer.self_attn.key_values(entry.unsqueeze(0), rotary(row.positions.unsqueeze(0), self.config))]

    def at_anchors(self, row: PackedRow, anchors: Tensor, context: list[ContextKV]) -> Tensor:
        """Return the target's state before each anchor, [A, 1, hidden]; a sequence's first token has none: zeros."""
        del context
        first = (row.positions[anchors] == 0).unsqueeze(-1)
        return self._states(row)[(anchors - 1).clamp(min=0)].masked_fill(first, 0.0).unsqueeze(1)

    def _rows(
        self,
        row: PackedRow,
        anchors: Tensor,
        hidden: Tensor,
        context: list[ContextKV],
        following: _Next,
        sample: VocabSample | None = None,
    ) -> Tensor:
        """Run the rows of the blocks one after the other and return their logits, [A, gamma, vocab]."""
        state, tokens, (stored,) = hidden.squeeze(1), row.token_ids[anchors], context
        places = torch.arange(len(row.token_ids), device=anchors.device)
        same = row.segments == row.segments[anchors].unsqueeze(-1)
        mask = same & (places < (anchors - 1).unsqueeze(-1))
        own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        rows = []
        for number in range(self.config.block_size):
            stream, entry = (part.unsqueeze(0) for part in self._entries(tokens, state))
            turn = rotary((row.positions[anchors] - 1 + number).unsqueeze(0), self.config)
            mask = torch.cat((mask, own), dim=1)
            state = self._layer(stream, entry, turn, stored, mask.unsqueeze(0)).squeeze(0)
            stored = _joined(stored, self._layer.self_attn.key_values(entry, turn))
            rows.append(self.base_logits(self.norm(state), sample))
            tokens = following(number, rows[-1])
        return torch.stack(rows, dim=1)

    def follow(
        self, row: PackedRow, anchors: Tensor, hidden: Tensor, context: list[ContextKV], previous: Tensor
    ) -> Tensor:
        """Return logits [A, gamma, vocab] given the tokens before each row, `previous` [A, gamma]."""
        return self._rows(row, anchors, hidden, context, _stored(previous))

    def propose(
        self, row: PackedRow, anchors: Tensor, hidden: Tensor, context: list[ContextKV], choose: Choose = greedy
    ) -> Draft:
        """Draft [A, gamma] tokens at `anchors`, each row from the token that the row before chose."""
        chosen: list[Tensor] = []

        def following(_: int, logits: Tensor) -> Tensor:
            chosen.append(choose(logits))
            return chosen[-1]

        logits = self._rows(row, anchors, hidden, context, following)
        return Draft(torch.stack(chosen, dim=1), logits, None)

    def forward(self, row: PackedRow, anchors: Tensor, sample: VocabSample | None = None) -> BlockOutput:
        """Run the blocks at `anchors` [A] of a packed row on the target's tokens, and on the draft's own states."""
        labels = block_labels(row, anchors, self.config.block_size)
        previous = torch.cat((row.token_ids[anchors].unsqueeze(-1), labels.tokens[:, :-1]), dim=1)
        context = self.context_of(row)
        hidden = self.at_anchors(row, anchors, context)
        with torch.no_grad():
            target_logits = self.base_logits(row.last_hidden[labels.sources], sample)
        return BlockOutput(
            draft_logits=self._rows(row, anchors, hidden, context, _stored(previous), sample),
            target_logits=target_logits,
            tokens=labels.tokens if sample is None else sample.index_of(labels.tokens),
            valid=labels.valid,
            confidence=None,
        )


def build_draft(config: DraftConfig) -> DraftModel:
    """Return the model of `config.method`, with unset weights."""
    return DraftModel(config) if config.method == "dspark" else RecurrentModel(config)


def _stored(previous: Tensor) -> _Next:
    last = previous.shape[1] - 1
    return lambda number, _: previous[:, min(number + 1, last)]


def _joined(first: ContextKV, second: ContextKV) -> ContextKV:
    return ContextKV(*(torch.cat(parts, dim=2) for parts in zip(first, second, strict=True)))
