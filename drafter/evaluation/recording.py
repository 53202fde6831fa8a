"""Records what a drafter drafts at every anchor of a stored answer: how likely each node is, and which ones come true.

A pass that verifies fewer rows verifies a prefix of the same nodes, so one record answers for every number of rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.evaluation.replay import Chunk, chunks
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.model.edge_calibration import q_temperature
from sparktier.kernels.expand import Candidates, EdgeAcceptance, MarkovHead, Shape, expand_top


class RecordPlan(NamedTuple):
    """What is drafted: bounds of the expansion, nodes kept of each draft, how likely edges are, and tokens listed."""

    shape: Shape
    nodes: int
    edges: EdgeAcceptance
    shortlist: int | None = None


class AnchorRecord(NamedTuple):
    """Every anchor of one answer: survival [A, nodes] float32, falling, 0 where there is no node; came_true [A, nodes]
    bool: whether target-match accepts the node if it is verified with all before it; remaining [A] tokens to come."""

    survival: Tensor
    came_true: Tensor
    remaining: Tensor


@torch.no_grad()
def record_answer(
    model: DraftModel, record: FeatureRecord, temperature: float, plan: RecordPlan, *, to_the_end: bool = False
) -> AnchorRecord:
    """Draft at every anchor of an answer that the target gave at `temperature`.

    Args:
        model: the drafter.
        record: the answer, with features.
        temperature: of the answer.
        plan: what is drafted.
        to_the_end: keep nodes for the last token, too. An engine doesn't verify them: the token before it brings it.
    """
    parts = [_recorded(model, chunk, temperature, plan, to_the_end) for chunk in chunks(model, record)]
    return AnchorRecord(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _recorded(model: DraftModel, chunk: Chunk, temperature: float, plan: RecordPlan, to_the_end: bool) -> AnchorRecord:
    candidates = _drafted(model, chunk, temperature, plan)
    useful = chunk.remaining - (0 if to_the_end else 1)
    survival = candidates.survival.masked_fill(candidates.depths > useful.unsqueeze(1), 0.0)[:, 1:]
    # The order in which `select_rows` takes them.
    order = survival.argsort(dim=1, descending=True, stable=True)[:, : plan.nodes]
    falling = survival.gather(1, order)
    came_true = _accepted(chunk, candidates)[:, 1:].gather(1, order) & (falling > 0)
    missing = plan.nodes - falling.shape[1]
    pad = (0, max(0, missing))
    return AnchorRecord(torch.nn.functional.pad(falling, pad), torch.nn.functional.pad(came_true, pad), chunk.remaining)


def _accepted(chunk: Chunk, candidates: Candidates) -> Tensor:
    """[A, nodes] whether each node's path is the stored answer's; the anchor's is."""
    labels = chunk.labels
    stored = torch.nn.functional.pad(labels.tokens.masked_fill(~labels.valid, -1), (1, 0), value=-1)
    equal = candidates.tokens == stored.gather(1, candidates.depths)
    accepted = candidates.depths == 0
    for depth in range(1, labels.tokens.shape[1] + 1):
        above = accepted.gather(1, candidates.parents.clamp(min=0))
        accepted = accepted | ((candidates.depths == depth) & equal & above)
    return accepted


def _drafted(model: DraftModel, chunk: Chunk, temperature: float, plan: RecordPlan) -> Candidates:
    head = model.markov_head
    assert head is not None, "nodes are conditioned on parents"
    return expand_top(
        anchors=chunk.anchor_tokens,
        block_logits=model.base_logits(chunk.hidden),
        head=MarkovHead(head.markov_w1.weight, head.markov_w2.weight),
        temperatures=chunk.hidden.new_full((len(chunk.anchors),), q_temperature(temperature)),
        shape=plan.shape,
        edge_acceptance=plan.edges,
        shortlist=plan.shortlist,
    )
