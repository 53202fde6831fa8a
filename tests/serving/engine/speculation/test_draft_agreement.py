"""Ranks whose drafts round differently verify rank 0's tree, drawn or not."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparktier.kernels.expand import Candidates
from sparktier.kernels.select import Selection, select_rows
from sparktier.serving.engine.speculation.draft_step import DraftStep


class Broadcast:
    """The sync of rank 0, whose `values` every other rank's sync then returns."""

    def __init__(self, source: "Broadcast | None" = None) -> None:
        self.source, self.values = source, torch.empty(0)

    def enabled(self, _site: object) -> bool:
        return True

    def sync(self, _site: object, values: Tensor) -> Tensor:
        self.values = values.clone() if self.source is None else self.source.values
        return self.values


def selected(survival: list[float]) -> Selection:
    candidates = Candidates(
        tokens=torch.tensor([[7, 11, 12, 13]]),
        parents=torch.tensor([[-1, 0, 0, 1]]),
        depths=torch.tensor([[0, 1, 1, 2]]),
        survival=torch.tensor([survival]),
        distributions=torch.tensor([[0, 1, -1, -1]]),
    )
    return select_rows(candidates=candidates, row_budgets=torch.tensor([3]), width=4)


def step(sync: Broadcast) -> DraftStep:
    worker: Any = SimpleNamespace(_tp_sync=sync)
    edges: Any = None
    return DraftStep(worker, edges, needs_trees=False)


def test_every_rank_verifies_the_tree_of_rank_0() -> None:
    first, other = selected([1.0, 0.6, 0.2, 0.3]), selected([1.0, 0.6, 0.3, 0.2])
    assert not torch.equal(first.tree.tokens, other.tree.tokens)
    leader = Broadcast()
    leads, follows = step(leader)._agreed(first), step(Broadcast(leader))._agreed(other)
    for tree, distributions in (leads, follows):
        assert all(map(torch.equal, tree, first.tree))
        assert torch.equal(distributions, first.distributions)
