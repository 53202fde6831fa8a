"""Recorded drafts against the replay of trees and chains: the same accepted tokens for every number of rows."""

import pytest
import torch

from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.evaluation.recording import RecordPlan, record_answer
from sparktier.drafter.evaluation.replay import replay
from sparktier.kernels.expand import Shape
from support.drafts import loud_model, random_record, tiny_config
from support.oracles.tree_replay import TreePlan, replay_trees

CONFIG = tiny_config()
TREE, CHAIN = Shape(CONFIG.block_size, 3, 3), Shape(CONFIG.block_size, 1, 1)


def own_text(chance: int) -> FeatureRecord:
    """A record whose answer is mostly what the draft itself proposes, so that something is accepted."""
    model, record = loud_model(CONFIG, chance), random_record(CONFIG, 40, 8, chance)
    for anchor in range(8, 36, 4):
        record.token_ids[anchor + 1 : anchor + 4] = replay(model, record, 0.0, 0).drafted[anchor - 8, :3]
    return record


@pytest.mark.parametrize(("shape", "rows"), [(TREE, 9), (TREE, 4), (CHAIN, CONFIG.block_size + 1), (CHAIN, 3)])
@pytest.mark.parametrize("chance", [1, 2, 3])
def test_a_record_accepts_what_the_replay_does(shape: Shape, rows: int, chance: int) -> None:
    model, record = loud_model(CONFIG, chance), own_text(chance)
    plan = RecordPlan(shape, 12, lambda q, _depth: q)
    found = record_answer(model, record, 0.0, plan, to_the_end=True)
    replayed = replay_trees(model, record, 0.0, TreePlan(shape, rows, plan.edges))
    assert replayed.accepted.sum() > 0
    assert found.came_true[:, : rows - 1].sum(dim=1).tolist() == replayed.accepted.tolist()
    assert (found.survival.diff(dim=1) <= 0).all()


def test_every_row_before_the_last_token_is_a_guess_at_it() -> None:
    """Deeper nodes are likelier here, but beyond the answer: a tree of 4 rows has 3 of the tokens that may be last."""
    model, record = loud_model(CONFIG, 1), own_text(1)
    plan, accepted = RecordPlan(TREE, 3, lambda q, _depth: torch.tensor([1.0, 0.5, 0.5]).expand_as(q)), []
    for last in range(CONFIG.vocab_size):
        record.token_ids[-1] = last
        found = record_answer(model, record, 0.0, plan, to_the_end=True)
        replayed = replay_trees(model, record, 0.0, TreePlan(TREE, 4, plan.edges))
        accepted.append(
            (int(found.came_true[found.remaining == 1].sum()), int(replayed.accepted[replayed.remaining == 1]))
        )
    assert [sum(column) for column in zip(*accepted, strict=True)] == [3, 3]


def test_no_node_lies_beyond_the_last_but_one_token() -> None:
    model, record = loud_model(CONFIG, 1), own_text(1)
    found = record_answer(model, record, 0.0, RecordPlan(CHAIN, CONFIG.block_size, lambda q, _depth: q))
    room = (found.remaining - 1).clamp(0, CONFIG.block_size)
    assert ((found.survival > 0).sum(dim=1) <= room).all()
    assert (found.came_true.sum(dim=1) <= room).all()
    assert not torch.equal(found.survival, torch.zeros_like(found.survival))
