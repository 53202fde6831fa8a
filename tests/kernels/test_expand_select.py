"""Expansion and selection against the plain versions, and the properties every tree must have."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparktier.kernels.draft_tree import DraftTree, chain_tree
from sparktier.kernels.expand import Candidates, DraftDistributions, MarkovHead, Shape, expand_drawn, expand_top
from sparktier.kernels.reference import tree as reference
from sparktier.kernels.select import select_rows
from support.oracles.tree_contract import check_tree

VOCAB, RANK, BLOCK = 11, 3, 4
BATCH, CHANCE = st.integers(1, 4), st.integers(0, 2**31)
SHAPE = st.builds(Shape, st.integers(1, BLOCK), st.integers(1, 4), st.integers(1, 5))


def edge(q: Tensor, depth: int) -> Tensor:
    return q.sqrt() * (1 - 0.05 * depth)


def slot(children: int) -> object:
    """A guess from q alone: the likelier the best tokens, the likelier the first draws are accepted."""

    def acceptance(q: Tensor, depth: int) -> Tensor:
        return q.topk(children, dim=-1).values.sqrt() * (1 - 0.05 * depth)

    return acceptance


class Draft:
    """Random inputs of an expansion."""

    def __init__(self, batch: int, chance: int) -> None:
        generator = torch.Generator().manual_seed(chance)
        self.anchors = torch.randint(VOCAB, (batch,), generator=generator)
        self.block_logits = 2 * torch.randn(batch, BLOCK, VOCAB, generator=generator)
        self.head = MarkovHead(*(torch.randn(VOCAB, RANK, generator=generator) for _ in range(2)))
        self.temperatures = 0.5 + torch.rand(batch, generator=generator)

    def top(self, shape: Shape, requests: slice = slice(None), shortlist: int | None = None) -> Candidates:
        return expand_top(
            anchors=self.anchors[requests],
            block_logits=self.block_logits[requests],
            head=self.head,
            temperatures=self.temperatures[requests],
            shape=shape,
            edge_acceptance=edge,
            shortlist=shortlist,
        )

    def drawn(
        self, shape: Shape, requests: slice = slice(None), shortlist: int | None = None
    ) -> tuple[Candidates, DraftDistributions]:
        seeds = torch.arange(len(self.anchors))
        return expand_drawn(
            anchors=self.anchors[requests],
            block_logits=self.block_logits[requests],
            head=self.head,
            temperatures=self.temperatures[requests],
            shape=shape,
            slot_acceptance=slot(shape.children),
            seeds=seeds[requests],
            anchor_positions=seeds[requests] + 50,
            shortlist=shortlist,
        )


def nodes_of(candidates: Candidates, request: int) -> list[reference.Node]:
    parts = (candidates.tokens, candidates.parents, candidates.depths, candidates.survival)
    return [reference.Node(*node) for node in zip(*(part[request].tolist() for part in parts), strict=True)]


def kept_nodes(candidates: Candidates, tree: DraftTree, request: int) -> list[int]:
    """The candidate in each live row: the only one with the row's token below the candidate of the row's parent."""
    places = {
        (node.parent, node.token): place
        for place, node in enumerate(nodes_of(candidates, request))
        if node.survival > 0
    }
    kept: list[int] = []
    for row in range(int(tree.row_counts[request])):
        parent = int(tree.parents[request, row])
        kept.append(places[kept[parent] if row else -1, int(tree.tokens[request, row])])
    return kept


@settings(max_examples=60)
@given(BATCH, SHAPE, CHANCE)
def test_expansion_equals_the_reference(batch: int, shape: Shape, chance: int) -> None:
    draft = Draft(batch, chance)
    candidates = draft.top(shape)
    for i in range(batch):
        expected = reference.expand_top(
            anchor=int(draft.anchors[i]),
            block_logits=draft.block_logits[i].tolist(),
            w1=draft.head.w1.tolist(),
            w2=draft.head.w2.tolist(),
            temperature=float(draft.temperatures[i]),
            shape=shape,
            edge_acceptance=lambda q, depth: q**0.5 * (1 - 0.05 * depth),
        )
        got = nodes_of(candidates, i)
        assert [node[:3] for node in got] == [node[:3] for node in expected]
        torch.testing.assert_close(
            [node.survival for node in got], [node.survival for node in expected], rtol=1e-4, atol=0
        )


@settings(max_examples=60)
@given(BATCH, SHAPE, CHANCE, st.integers(1, VOCAB))
def test_a_shortlist_is_as_if_other_tokens_were_impossible(
    batch: int, shape: Shape, chance: int, shortlist: int
) -> None:
    draft = Draft(batch, chance)
    got = draft.top(shape._replace(children=min(shape.children, shortlist)), shortlist=shortlist)
    kept = draft.block_logits.topk(shortlist, dim=-1).indices
    possible = torch.zeros_like(draft.block_logits, dtype=torch.bool).scatter_(-1, kept, True)
    draft.block_logits.masked_fill_(~possible, -torch.inf)
    expected = draft.top(shape._replace(children=min(shape.children, shortlist)))
    live = expected.survival > 0
    assert torch.equal(got.tokens[live], expected.tokens[live])
    torch.testing.assert_close(got.survival, expected.survival)


@settings(max_examples=60)
@given(BATCH, SHAPE, CHANCE, st.booleans())
def test_ragged_batch_equals_each_request_alone(batch: int, shape: Shape, chance: int, drawn: bool) -> None:
    draft = Draft(batch, chance)
    expand = (lambda at: draft.drawn(shape, at)[0]) if drawn else (lambda at: draft.top(shape, at))
    together = expand(slice(None))
    budgets = torch.randint(1, 9, (batch,), generator=torch.Generator().manual_seed(chance))
    selected = select_rows(candidates=together, row_budgets=budgets, width=8).tree
    for i in range(batch):
        alone = expand(slice(i, i + 1))
        assert torch.equal(together.tokens[i : i + 1], alone.tokens)
        torch.testing.assert_close(together.survival[i : i + 1], alone.survival)
        alone_tree = select_rows(candidates=alone, row_budgets=budgets[i : i + 1], width=8).tree
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(selected, alone_tree, strict=True))


@settings(max_examples=80)
@given(BATCH, SHAPE, CHANCE, st.booleans())
def test_selected_trees_are_valid_within_budget_and_equal_the_reference(
    batch: int, shape: Shape, chance: int, drawn: bool
) -> None:
    draft = Draft(batch, chance)
    candidates = draft.drawn(shape)[0] if drawn else draft.top(shape)
    budgets = torch.randint(1, 13, (batch,), generator=torch.Generator().manual_seed(chance))
    selection = select_rows(candidates=candidates, row_budgets=budgets, width=12)
    check_tree(selection.tree)
    assert (selection.tree.row_counts <= budgets).all()
    assert torch.equal(selection.tree.tokens[:, 0], draft.anchors)
    for i in range(batch):
        expected = reference.select_nodes(nodes_of(candidates, i), int(budgets[i]))
        assert kept_nodes(candidates, selection.tree, i) == expected


@settings(max_examples=60)
@given(CHANCE, st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0]))
def test_selection_is_the_best_set_closed_under_ancestors(chance: int, budget: int, flat: float) -> None:
    generator = torch.Generator().manual_seed(chance)
    parents, survival = [-1], [1.0]
    for node in range(1, 9):
        parents.append(int(torch.randint(node, (1,), generator=generator)))
        edges = float(torch.rand(1, generator=generator))
        survival.append(survival[parents[-1]] * (1.0 if edges < flat else round(edges, 1)))
    filler = torch.zeros(1, 9, dtype=torch.int64)
    depths = [len(reference.ancestors(parents, node)) - 1 for node in range(9)]
    candidates = Candidates(
        torch.arange(9).unsqueeze(0), torch.tensor([parents]), torch.tensor([depths]), torch.tensor([survival]), filler
    )
    chosen = select_rows(candidates=candidates, row_budgets=torch.tensor([budget]), width=9)
    got = set(kept_nodes(candidates, chosen.tree, 0))
    closed = [
        {0, *rest}
        for size in range(budget)
        for rest in itertools.combinations(range(1, 9), size)
        if all(parents[node] in {0, *rest} for node in rest)
    ]
    values = candidates.survival[0].double()
    best = max(float(values[sorted(nodes)].sum()) for nodes in closed)
    assert got in closed
    assert abs(float(values[sorted(got)].sum()) - best) < 1e-12


@given(BATCH, CHANCE)
def test_one_child_per_parent_is_the_chain_of_the_markov_head(batch: int, chance: int) -> None:
    draft = Draft(batch, chance)
    budgets = torch.randint(1, BLOCK + 2, (batch,), generator=torch.Generator().manual_seed(chance))
    tree = select_rows(candidates=draft.top(Shape(BLOCK, 1, 1)), row_budgets=budgets, width=BLOCK + 1).tree
    token, drafts = draft.anchors, []
    for depth in range(BLOCK):
        token = (draft.block_logits[:, depth] + draft.head.w1[token] @ draft.head.w2.T).argmax(dim=1)
        drafts.append(token)
    chain = chain_tree(anchors=draft.anchors, drafts=torch.stack(drafts, 1), row_counts=budgets)
    assert torch.equal(tree.tokens, chain.tokens * tree.live)
    assert all(torch.equal(a, b) for a, b in zip(tree[1:], chain[1:], strict=True))


def test_a_draft_of_nan_drafts_nothing() -> None:
    draft = Draft(2, 0)
    draft.block_logits[1] = torch.nan
    tree = select_rows(candidates=draft.top(Shape(3, 2, 2)), row_budgets=torch.tensor([6, 6]), width=6).tree
    assert tree.row_counts.tolist() == [6, 1]
    check_tree(tree)


def test_tokens_that_a_grammar_forbids_are_never_drafted() -> None:
    draft = Draft(2, 0)
    draft.block_logits[:, :, 3:] = -torch.inf
    for candidates in (draft.top(Shape(3, 4, 5)), draft.drawn(Shape(3, 4, 5))[0]):
        tree = select_rows(candidates=candidates, row_budgets=torch.tensor([20, 20]), width=20).tree
        check_tree(tree)
        assert (tree.tokens[:, 1:][tree.live[:, 1:]] < 3).all()
        assert ((tree.parents == 0).sum(dim=1) == 3).all()


@given(BATCH, SHAPE, CHANCE, st.none() | st.integers(1, VOCAB))
def test_children_come_from_the_distributions_that_are_returned(
    batch: int, shape: Shape, chance: int, shortlist: int | None
) -> None:
    draft = Draft(batch, chance)
    shape = shape._replace(children=min(shape.children, shortlist or VOCAB))
    candidates, distributions = draft.drawn(shape, shortlist=shortlist)
    kept = draft.block_logits.topk(shortlist or VOCAB, dim=-1).indices
    possible = torch.full_like(draft.block_logits, -torch.inf).scatter_(-1, kept, 0.0)
    block_logits = draft.block_logits + possible
    for i in range(batch):
        nodes = nodes_of(candidates, i)
        for node in nodes[1:]:
            distribution = int(candidates.distributions[i, node.parent])
            q = reference.conditional(
                block_logits[i, node.depth - 1].tolist(),
                draft.head.w1[nodes[node.parent].token].tolist(),
                draft.head.w2.tolist(),
                float(draft.temperatures[i]),
            )
            dense = distributions.dense(torch.tensor([i]), torch.tensor([distribution]))[0]
            torch.testing.assert_close(dense.tolist(), q, rtol=1e-4, atol=1e-7)
            assert dense[node.token] > 0


def test_a_rising_slot_acceptance_cannot_skip_a_draw() -> None:
    draft = Draft(3, 4)
    candidates, _ = expand_drawn(
        anchors=draft.anchors,
        block_logits=draft.block_logits,
        head=draft.head,
        temperatures=draft.temperatures,
        shape=Shape(2, 2, 4),
        slot_acceptance=lambda q, depth: torch.tensor([0.3, 0.9, 0.2, 0.8]).expand(*q.shape[:2], -1),
        seeds=draft.anchors,
        anchor_positions=draft.anchors,
    )
    for budget in range(1, 12):
        chosen = select_rows(candidates=candidates, row_budgets=torch.full((3,), budget), width=12)
        for request in range(3):
            kept = kept_nodes(candidates, chosen.tree, request)
            for node in kept[1:]:
                siblings = (
                    (candidates.parents[request] == candidates.parents[request, node]).nonzero().flatten().tolist()
                )
                assert set(siblings[: siblings.index(node)]) <= set(kept)
