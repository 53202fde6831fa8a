"""Rows in which the target says nothing: all tokens masked, NaN, infinite. No NaN, no index out of range, and no other
row notices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparktier.kernels.accept_tree import TreeAcceptance, walk_drawn, walk_matching
from sparktier.kernels.draft_tree import DraftTree
from sparktier.kernels.expand import MarkovHead, Shape, expand_drawn, expand_top
from sparktier.kernels.noise import draw
from sparktier.kernels.select import select_rows
from sparktier.kernels.target_probs import NO_TOKEN, SamplingRows, greedy_tokens, target_probs
from support.oracles.tree_contract import check_tree

VOCAB = 9000  # above the partial sort's width, and many blocks of the search
BROKEN = {
    "masked": lambda row: row.fill_(-torch.inf),
    "one NaN": lambda row: row.index_fill_(0, torch.tensor([VOCAB - 1]), torch.nan),
    "all NaN": lambda row: row.fill_(torch.nan),
    "infinite": lambda row: row.index_fill_(0, torch.tensor([70]), torch.inf),
}
FILTERS: dict[str, dict[str, list[float]]] = {
    "none": {},
    "top_p": {"top_ps": [0.9, 1.0, 0.5]},
    "top_k": {"top_ks": [20, 1 << 30, 3]},
    "min_p": {"min_ps": [0.1, 0.0, 0.3]},
    "all, one greedy": {"top_ps": [0.9, 1.0, 0.5], "top_ks": [1, 20, 1 << 30], "min_ps": [0.1, 0.0, 0.3]},
    "all, the broken one greedy": {"top_ps": [0.9, 1.0, 0.5], "top_ks": [20, 1, 1 << 30], "min_ps": [0.1, 0.0, 0.3]},
}


def broken_in_the_middle(kind: str, rows: int = 3) -> Tensor:
    logits = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(1))
    BROKEN[kind](logits[rows // 2])
    return logits


def sampling(filters: str) -> SamplingRows:
    given = {name: torch.tensor(values) for name, values in FILTERS[filters].items()}
    return SamplingRows(temperatures=torch.tensor([0.7, 1.0, 1.3]), **given)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_row_has_no_probabilities_and_changes_no_other(kind: str, filters: str) -> None:
    logits, rows = broken_in_the_middle(kind), sampling(filters)
    probs = target_probs(logits=logits, sampling=rows)
    assert probs[1].eq(0).all()
    for row in (0, 2):
        at = torch.tensor([row])
        assert torch.equal(probs[row], target_probs(logits=logits[at], sampling=rows.take(at))[0])
    drawn = draw(weights=probs, seeds=torch.arange(3), positions=torch.arange(3))
    assert (drawn < 0).tolist() == [False, True, False]
    assert probs[[0, 2], drawn[[0, 2]]].gt(0).all()


@pytest.mark.parametrize("rows", [3, 9])
@pytest.mark.parametrize("kind", BROKEN)
def test_nothing_is_the_greedy_token_of_a_broken_row(kind: str, rows: int) -> None:
    logits = broken_in_the_middle(kind, rows)
    chosen = greedy_tokens(logits=logits).tolist()
    assert chosen == [NO_TOKEN if row == rows // 2 else int(logits[row].argmax()) for row in range(rows)]


@pytest.mark.parametrize("shortlist", [None, 256])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_draft_that_is_broken_proposes_nothing(value: float, shortlist: int | None) -> None:
    generator = torch.Generator().manual_seed(2)
    block = torch.randn(3, 4, VOCAB, generator=generator)
    block[1] = value
    common = {
        "anchors": torch.tensor([1, 2, 3]),
        "block_logits": block,
        "head": MarkovHead(*torch.randn(2, VOCAB, 8, generator=generator)),
        "temperatures": torch.ones(3),
        "shape": Shape(4, 2, 2),
        "shortlist": shortlist,
    }
    seeds = {"seeds": torch.arange(3), "anchor_positions": torch.arange(3)}
    likeliest = expand_top(**common, edge_acceptance=lambda q, depth: q)
    drawn, _ = expand_drawn(**common, **seeds, slot_acceptance=lambda q, depth: q.topk(2, dim=-1).values)
    for candidates in (likeliest, drawn):
        tree = select_rows(candidates=candidates, row_budgets=torch.full((3,), 7), width=7).tree
        check_tree(tree)
        assert tree.row_counts.tolist() == [7, 1, 7]


def two_level_trees() -> DraftTree:
    """Three requests: an anchor, two children, and a child of the first."""
    tokens = torch.tensor([[7, 1, 2, 3]] * 3)
    parents = torch.tensor([[-1, 0, 0, 1]] * 3)
    depths = torch.tensor([[0, 1, 1, 2]] * 3)
    return DraftTree(tokens, parents, depths, torch.full((3,), 4))


def probabilities(broken_row: int | None) -> Tensor:
    """[requests, rows, V]: tokens 1 and 3 are certain, then any; request 1 may have a broken row."""
    target = torch.full((3, 4, 8), 1.0 / 8)
    target[:, 0], target[:, 1] = torch.eye(8)[1], torch.eye(8)[3]
    if broken_row is not None:
        target[1, broken_row] = 0.0
    return target


def drawn_walk(broken_row: int | None) -> TreeAcceptance:
    target, draft = probabilities(broken_row), torch.full((3, 4, 8), 1.0 / 8)
    return walk_drawn(
        tree=two_level_trees(),
        target_probs=lambda requests, rows: target[requests, rows],
        draft_probs=lambda requests, rows: draft[requests, rows],
        seeds=torch.arange(3),
        anchor_positions=torch.arange(3) + 20,
        max_depth=2,
        max_children=2,
    )


def matching_walk(broken_row: int | None) -> TreeAcceptance:
    target = probabilities(broken_row)

    def choose(requests: Tensor, rows: Tensor) -> Tensor:
        return draw(weights=target[requests, rows], seeds=requests, positions=rows)

    return walk_matching(tree=two_level_trees(), choose=choose, max_depth=2)


@pytest.mark.parametrize("walk", [drawn_walk, matching_walk])
@pytest.mark.parametrize(("broken_row", "accepted"), [(0, 0), (1, 1), (3, 2)])
def test_a_walk_ends_where_the_target_says_nothing(
    walk: Callable[[int | None], TreeAcceptance], broken_row: int, accepted: int
) -> None:
    whole, cut = walk(None), walk(broken_row)
    assert cut.accepted.tolist() == [2, accepted, 2]
    assert cut.bonus[1] == NO_TOKEN
    assert cut.tokens[1].tolist() == [*[1, 3][:accepted], *[-1] * (3 - accepted)]
    for request in (0, 2):
        assert all(torch.equal(part[request], other[request]) for part, other in zip(cut, whole, strict=True))
