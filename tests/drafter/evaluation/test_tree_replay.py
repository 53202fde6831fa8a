"""Replayed trees against a walk in plain Python over the reference expansion, and against the chain they contain."""

import pytest
import torch

from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.evaluation.replay import chunks, replay
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.kernels.expand import Shape
from sparktier.kernels.reference import tree as reference
from support.drafts import loud_model, random_record, tiny_config
from support.oracles.tree_replay import TreePlan, chain_plan, replay_trees

CONFIG = tiny_config()
SHAPE, ROWS = Shape(CONFIG.block_size, 3, 3), 9
PROMPT, LENGTH = 8, 40


def own_text(model: DraftModel, chance: int) -> FeatureRecord:
    """A record whose answer is mostly what the draft itself proposes, so that something is accepted."""
    record = random_record(CONFIG, LENGTH, PROMPT, chance)
    for anchor in range(PROMPT, LENGTH - 4, 4):
        record.token_ids[anchor + 1 : anchor + 4] = replay(model, record, 0.0, 0).drafted[anchor - PROMPT, :3]
    return record


def in_plain_python(chance: int, temperature: float) -> list[int]:
    """Accepted drafts at every anchor of a random record."""
    model, accepted = loud_model(CONFIG, chance), []
    assert model.markov_head is not None
    for chunk in chunks(model, own_text(model, chance)):
        for block, anchor in enumerate(chunk.anchor_tokens.tolist()):
            nodes = reference.expand_top(
                anchor=anchor,
                block_logits=model.base_logits(chunk.hidden)[block].tolist(),
                w1=model.markov_head.markov_w1.weight.tolist(),
                w2=model.markov_head.markov_w2.weight.tolist(),
                temperature=temperature or 1.0,
                shape=SHAPE,
                edge_acceptance=lambda q, _depth: q,
            )
            stored = [
                token if valid else -1
                for token, valid in zip(
                    chunk.labels.tokens[block].tolist(), chunk.labels.valid[block].tolist(), strict=True
                )
            ]
            reachable = [i for i in range(len(nodes)) if nodes[i].depth <= chunk.remaining[block]]
            kept = set(sorted(reachable, key=lambda i: (-nodes[i].survival, i))[:ROWS])
            accepted.append(walked(nodes, kept, stored))
    return accepted


def walked(nodes: list[reference.Node], kept: set[int], stored: list[int]) -> int:
    at, depth = 0, 0
    while depth < len(stored):
        found = [i for i in kept if nodes[i].parent == at and i and nodes[i].token == stored[depth]]
        if not found:
            break
        at, depth = found[0], depth + 1
    return depth


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trees_accept_what_the_reference_accepts(temperature: float) -> None:
    plan = TreePlan(SHAPE, ROWS, lambda q, _depth: q)
    for chance in range(3):
        with torch.no_grad():
            expected = in_plain_python(chance, temperature)
        model = loud_model(CONFIG, chance)
        found = replay_trees(model, own_text(model, chance), temperature, plan)
        assert found.accepted.tolist() == expected
        assert sum(expected) > 0


def test_one_child_per_parent_is_the_greedy_chain() -> None:
    model = loud_model(CONFIG)
    record = own_text(model, 0)
    chain, tree = replay(model, record, 0.0, 0), replay_trees(model, record, 0.0, chain_plan(CONFIG.block_size))
    assert chain.accepted.max() > 0
    assert torch.equal(tree.accepted, chain.accepted)
    assert torch.equal(tree.anchors, chain.anchors)
    assert torch.equal(tree.remaining, chain.remaining)
