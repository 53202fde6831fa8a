"""Replays a drafter at every anchor of a stored answer of the target: what it drafts, and what is accepted.

Exact without running the target again, by conditioning on the answer:

* Greedy: the draft is accepted while it equals the stored token.
* Ratio rejection at temperature T: emitted tokens follow the target, so a stored answer sampled at T is what a round
  emits, and P(row accepted | it emitted x) = min(1, q(x)/p(x)). That is the accept rule with draft and target swapped;
  its residual draw, from norm((q - p)+), is the rejected draft itself. So the drafter's own tokens, and with them the
  confidences it would have shown, are replayed too.

The rules are those of sparktier.kernels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.packing import BlockLabels, FeatureRecord, PackedRow, anchor_candidates, block_labels, pack
from sparktier.drafter.model.backbone import ContextKV
from sparktier.drafter.model.draft_model import Draft, DraftModel
from sparktier.drafter.model.edge_calibration import q_temperature
from sparktier.drafter.training.schedule import mixed_seed
from sparktier.kernels.accept import accept_matching, accept_ratio

# Bounds memory: logits of this many blocks are alive at once.
BLOCKS_AT_ONCE = 32
CHILDREN = 8


@dataclass(frozen=True)
class Replay:
    """Every anchor of one sequence: anchors [A]; drafted [A, gamma] tokens; accepted [A] number of accepted ones;
    remaining [A] tokens of the answer after the anchor; confidence [A, gamma] raw logits, zeros without the head."""

    anchors: Tensor
    drafted: Tensor
    accepted: Tensor
    remaining: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Children:
    """Likeliest children of accepted parents: q [n] draft probability, accepted [n] bool."""

    q: Tensor
    accepted: Tensor


@torch.no_grad()
def replay(model: DraftModel, record: FeatureRecord, temperature: float, seed: int) -> Replay:
    """Replay all anchors of a sequence that the target answered at `temperature`; `seed` keys the coins and draws."""
    return _joined([part for _, part in _by_chunk(model, record, temperature, seed)])


@torch.no_grad()
def replay_with_inputs(
    model: DraftModel, record: FeatureRecord, temperature: float, seed: int
) -> tuple[Replay, Tensor]:
    """Return the same replay, and the inputs of the confidence head, [A, gamma, width]."""
    parts, inputs = [], []
    for chunk, part in _by_chunk(model, record, temperature, seed):
        before = torch.cat((chunk.anchor_tokens.unsqueeze(1), part.drafted[:, :-1]), dim=1)
        parts.append(part)
        inputs.append(model.confidence_inputs(chunk.hidden, before))
    return _joined(parts), torch.cat(inputs)


@torch.no_grad()
def likeliest_children(model: DraftModel, record: FeatureRecord, temperature: float) -> Children:
    """Return the children in a tree of deterministic (top-k) children, and which of them target-match accepts.

    A parent counts where it was accepted: all stored tokens above it were among their parents' children.
    """
    q_parts, accepted_parts = [], []
    for chunk in chunks(model, record):
        logits = model.teacher_forced(chunk.hidden, chunk.previous) / q_temperature(temperature)
        q, tokens = logits.softmax(dim=-1).topk(CHILDREN, dim=-1)
        accepted = (tokens == chunk.labels.tokens.unsqueeze(-1)) & chunk.labels.valid.unsqueeze(-1)
        above = torch.cat((torch.ones_like(chunk.labels.valid[:, :1]), accepted.any(dim=-1)[:, :-1]), dim=1)
        reached = above.int().cumprod(dim=1).bool() & chunk.labels.valid
        q_parts.append(q[reached].flatten())
        accepted_parts.append(accepted[reached].flatten())
    return Children(torch.cat(q_parts), torch.cat(accepted_parts))


@dataclass(frozen=True)
class Chunk:
    """Some blocks of one sequence: what the draft made there (`at_anchors`, `context_of`), and their labels."""

    row: PackedRow
    anchors: Tensor
    labels: BlockLabels
    hidden: Tensor
    context: list[ContextKV]

    @property
    def anchor_tokens(self) -> Tensor:
        """The token of each anchor [A]."""
        return self.row.token_ids[self.anchors]

    @property
    def previous(self) -> Tensor:
        """The stored token before each row [A, gamma]."""
        return torch.cat((self.anchor_tokens.unsqueeze(1), self.labels.tokens[:, :-1]), dim=1)

    @property
    def remaining(self) -> Tensor:
        """How many answer tokens follow each anchor without a gap [A]."""
        places = torch.arange(len(self.row.token_ids), device=self.anchors.device)
        ends = places.masked_fill(self.row.answer_mask, len(places))
        return ends.flip(0).cummin(dim=0).values.flip(0)[self.anchors] - self.anchors - 1

    @property
    def row_counts(self) -> Tensor:
        """Rows of each block that lie inside the answer, the anchor's included [A]."""
        return self.labels.valid.sum(dim=1) + 1


def chunks(model: DraftModel, record: FeatureRecord) -> Iterator[Chunk]:
    """Run the draft's backbone at every anchor of a sequence, a bounded number of blocks at a time."""
    row = pack([record]).to(model.fc.weight.device)
    context = model.context_of(row)
    for anchors in torch.split(anchor_candidates(row), BLOCKS_AT_ONCE):
        hidden = model.at_anchors(row, anchors, context)
        if not (hidden.isfinite().all() and row.last_hidden.isfinite().all()):
            raise ArtifactError(
                "features: must be finite, as must what the drafter makes of them (found NaN or infinity). Make the "
                "features again, or give another drafter."
            )
        yield Chunk(row, anchors, block_labels(row, anchors, model.config.block_size), hidden, context)


def _by_chunk(
    model: DraftModel, record: FeatureRecord, temperature: float, seed: int
) -> Iterator[tuple[Chunk, Replay]]:
    for chunk in chunks(model, record):
        draft, accepted = _greedy(model, chunk) if temperature <= 0 else _sampled(model, chunk, temperature, seed)
        silent = chunk.hidden.new_zeros(chunk.labels.tokens.shape)
        confidence = silent if draft.confidence is None else draft.confidence
        yield chunk, Replay(chunk.anchors, draft.tokens, accepted, chunk.remaining, confidence)


def _joined(parts: Sequence[Replay]) -> Replay:
    return Replay(
        anchors=torch.cat([part.anchors for part in parts]),
        drafted=torch.cat([part.drafted for part in parts]),
        accepted=torch.cat([part.accepted for part in parts]),
        remaining=torch.cat([part.remaining for part in parts]),
        confidence=torch.cat([part.confidence for part in parts]),
    )


def _greedy(model: DraftModel, chunk: Chunk) -> tuple[Draft, Tensor]:
    draft = model.propose(chunk.row, chunk.anchors, chunk.hidden, chunk.context)
    stored = torch.nn.functional.pad(chunk.labels.tokens, (0, 1))
    outcome = accept_matching(drafts=draft.tokens, target_tokens=stored, row_counts=chunk.row_counts)
    return draft, outcome.accepted


def _sampled(model: DraftModel, chunk: Chunk, temperature: float, seed: int) -> tuple[Draft, Tensor]:
    forced = model.follow(chunk.row, chunk.anchors, chunk.hidden, chunk.context, chunk.previous)
    q = (forced / temperature).softmax(dim=-1)
    # Neighbouring blocks predict the same positions: each position's distribution is made once.
    sources, places = torch.unique(chunk.labels.sources, return_inverse=True)
    p = (model.base_logits(chunk.row.last_hidden[sources]) / temperature).softmax(dim=-1)[places]
    positions = chunk.row.positions[chunk.anchors].unsqueeze(1) + torch.arange(q.shape[1] + 1, device=q.device)
    swapped = accept_ratio(
        drafts=chunk.labels.tokens,
        draft_probs=p,
        target_probs=torch.cat((q, q[:, -1:]), dim=1),
        row_counts=chunk.row_counts,
        seeds=torch.full_like(chunk.anchors, seed),
        positions=positions,
    )
    chooser = _Replayed(swapped.tokens, swapped.accepted, temperature, mixed_seed(seed, int(chunk.anchors[0])))
    return model.propose(chunk.row, chunk.anchors, chunk.hidden, chunk.context, chooser), swapped.accepted


class _Replayed:
    """Chooses the known tokens (accepted rows and the rejected one), then draws from the draft."""

    def __init__(self, known: Tensor, accepted: Tensor, temperature: float, seed: int) -> None:
        self._known, self._accepted, self._temperature, self._row = known, accepted, temperature, 0
        self._generator = torch.Generator(known.device).manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        probabilities = (logits / self._temperature).softmax(dim=-1)
        fresh = torch.multinomial(probabilities, 1, generator=self._generator).squeeze(1)
        row, self._row = self._row, self._row + 1
        return torch.where(row <= self._accepted, self._known[:, row].clamp(min=0), fresh)
