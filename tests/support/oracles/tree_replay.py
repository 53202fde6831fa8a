"""Replays draft trees at every anchor of a stored answer: which nodes target-match accepts.

Exact without running the target again: under target-match the emitted tokens are the target's own whatever is drafted,
so a path of the tree is accepted as far as it equals the stored answer, greedy or sampled. A tree of one child per
parent is the chain.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.evaluation.replay import Chunk, Replay, chunks
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.model.edge_calibration import q_temperature
from sparktier.kernels.accept_tree import walk_matching
from sparktier.kernels.draft_tree import DraftTree
from sparktier.kernels.expand import EdgeAcceptance, MarkovHead, Shape, expand_top
from sparktier.kernels.select import select_rows

_NO_TOKEN = -1


class TreePlan(NamedTuple):
    """What trees to draft: bounds of the expansion, rows verified (the anchor's included), and how likely edges are."""

    shape: Shape
    rows: int
    edges: EdgeAcceptance
    shortlist: int | None = None


@torch.no_grad()
def replay_trees(model: DraftModel, record: FeatureRecord, temperature: float, plan: TreePlan) -> Replay:
    """Replay all anchors of a sequence that the target answered at `temperature`; no confidences, no drafted tokens."""
    parts = []
    for chunk in chunks(model, record):
        tree = _draft(model, chunk, temperature, plan)
        stored = torch.nn.functional.pad(
            chunk.labels.tokens.where(chunk.labels.valid, _NO_TOKEN), (0, 1), value=_NO_TOKEN
        )
        chosen = stored.gather(1, tree.depths)
        walked = walk_matching(tree=tree, choose=partial(_at, chosen), max_depth=plan.shape.depth)
        none = torch.zeros_like(chunk.labels.tokens)
        parts.append((chunk.anchors, none, walked.accepted, chunk.remaining, none.float()))
    return Replay(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _at(table: Tensor, requests: Tensor, rows: Tensor) -> Tensor:
    return table[requests, rows]


def _draft(model: DraftModel, chunk: Chunk, temperature: float, plan: TreePlan) -> DraftTree:
    head = model.markov_head
    assert head is not None, "a tree is conditioned on parents"
    candidates = expand_top(
        anchors=chunk.anchor_tokens,
        block_logits=model.base_logits(chunk.hidden),
        head=MarkovHead(head.markov_w1.weight, head.markov_w2.weight),
        temperatures=chunk.hidden.new_full((len(chunk.anchors),), q_temperature(temperature)),
        shape=plan.shape,
        edge_acceptance=plan.edges,
        shortlist=plan.shortlist,
    )
    # As in the engine, no row is spent beyond the end of the answer.
    beyond = candidates.depths > chunk.remaining.unsqueeze(1)
    reachable = candidates._replace(survival=candidates.survival.masked_fill(beyond, 0.0))
    budgets = torch.full((len(chunk.anchors),), plan.rows, device=chunk.anchors.device)
    return select_rows(candidates=reachable, row_budgets=budgets, width=plan.rows).tree


def chain_plan(block_tokens: int) -> TreePlan:
    """Return the greedy chain of a whole block as a tree of one branch."""
    return TreePlan(Shape(block_tokens, 1, 1), block_tokens + 1, lambda q, _depth: torch.ones_like(q))
