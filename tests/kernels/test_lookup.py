"""Prompt lookup against a search by hand, its tokens in a drafter's tree against sets of paths, and what it learns."""

import itertools
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparktier.kernels.expand import Candidates, Shape
from sparktier.kernels.lookup.counting import AGREED, ALONE, CONTESTED, KINDS, cells, chances, count, no_counts
from sparktier.kernels.lookup.joining import alone, better_chain, join
from sparktier.kernels.lookup.matching import LONGEST_MATCH, SHORTEST_MATCH, Lookup, look_up
from sparktier.kernels.reference import lookup as reference
from sparktier.kernels.reference.tree import Node
from sparktier.kernels.select import select_rows
from support.oracles.tree_contract import check_tree

CPU = torch.device("cpu")
VOCAB, TOKENS = 4, 6
CHANCE = st.integers(0, 2**31)
# Few tokens, so that suffixes recur; the last of them is no token of the vocabulary.
CONTEXT = st.lists(st.integers(0, VOCAB), max_size=40)
KIND_NAMES = {AGREED: "agreed", CONTESTED: "contested", ALONE: "alone"}


def found_in(contexts: Sequence[Sequence[int]], *, stale: int = 0) -> Lookup:
    """Look up in contexts beyond whose ends the tables hold `stale`."""
    history = torch.full((len(contexts), 45), stale, dtype=torch.int32)
    for row, context in zip(history, contexts, strict=True):
        row[: len(context)] = torch.tensor(context, dtype=torch.int32)
    lengths = torch.tensor([len(context) for context in contexts])
    return look_up(history=history, lengths=lengths, tokens=TOKENS, vocabulary=VOCAB)


def drafts_of(found: Lookup, request: int) -> list[int]:
    live = int(found.live[request].sum())
    assert found.live[request, :live].all(), "drafts have no gaps"
    drafts: list[int] = found.tokens[request, :live].tolist()
    return drafts


@settings(max_examples=80)
@given(st.lists(CONTEXT, min_size=1, max_size=4), st.integers(0, VOCAB))
def test_a_lookup_finds_what_a_search_by_hand_finds(contexts: list[list[int]], stale: int) -> None:
    found = found_in(contexts, stale=stale)
    for request, context in enumerate(contexts):
        expected = reference.look_up(
            context, tokens=TOKENS, shortest=SHORTEST_MATCH, longest=LONGEST_MATCH, vocabulary=VOCAB
        )
        assert drafts_of(found, request) == expected.drafts
        assert int(found.matched[request]) == expected.matched


def test_the_longest_match_counts_and_the_last_of_equals() -> None:
    found = found_in([[0, 1, 2, 3, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1, 3, 2, 2, 0, 1], [3, 0, 1, 2]])
    assert drafts_of(found, 0)[0] == 3, "three tokens match there, two at the later place"
    assert drafts_of(found, 1)[0] == 3, "the later of two"
    assert drafts_of(found, 2) == []


def random_tree_of(shape: Shape, *, batch: int, chance: int) -> Candidates:
    """Candidates as `expand` grows them: levels of siblings with distinct tokens, some without any chance."""
    generator = torch.Generator().manual_seed(chance)
    rows = []
    for _ in range(batch):
        nodes, frontier = [Node(0, -1, 0, 1.0)], [0]
        for depth in range(1, shape.depth + 1):
            level = []
            for parent in frontier:
                for token in torch.randperm(VOCAB, generator=generator)[: shape.children].tolist():
                    edge = float(torch.rand((), generator=generator)) * float(torch.rand((), generator=generator) < 0.8)
                    level.append(len(nodes))
                    nodes.append(Node(token, parent, depth, nodes[parent].survival * edge))
            frontier = sorted(level, key=lambda node: (-nodes[node].survival, node))[: shape.parents]
        rows.append(nodes)
    tokens, parents, depths, survival = (torch.tensor([[node[i] for node in row] for row in rows]) for i in range(4))
    return Candidates(tokens, parents, depths, survival.float(), torch.full_like(tokens, -1))


def nodes_of(candidates: Candidates, request: int) -> list[Node]:
    return [Node(*node) for node in zip(*(part[request].tolist() for part in candidates[:4]), strict=True)]


def paths_of(candidates: Candidates, request: int) -> list[tuple[tuple[int, ...], float]]:
    """The tokens on the way to each node that holds one, and the node's survival."""
    found, nodes = [], nodes_of(candidates, request)
    for node in nodes:
        path, at = (node.token,), node.parent
        while at > 0:
            path, at = (nodes[at].token, *path), nodes[at].parent
        if node.survival > 0:
            found.append((path if node.parent >= 0 else (), node.survival))
    return found


def some_counts(chance: int) -> Tensor:
    generator = torch.Generator().manual_seed(chance)
    tried = torch.randint(0, 50, (len(no_counts(CPU)),), generator=generator)
    return torch.stack((tried, (tried * torch.rand(len(tried), generator=generator)).long()), dim=1)


SHAPES = st.builds(Shape, st.integers(1, 4), st.integers(1, 3), st.integers(1, VOCAB))


@settings(max_examples=80)
@given(st.lists(CONTEXT, min_size=1, max_size=4), SHAPES, CHANCE)
def test_a_tree_of_both_has_each_path_once_with_the_larger_survival(
    contexts: list[list[int]], shape: Shape, chance: int
) -> None:
    found = found_in(contexts)
    candidates = random_tree_of(shape, batch=len(contexts), chance=chance)
    counts = some_counts(chance)
    joined = join(candidates=candidates, lookup=found, counts=counts)
    survival = chances(counts)[cells(lookup=found, kinds=joined.kinds)].cumprod(dim=1)
    for request in range(len(contexts)):
        nodes, drafts = nodes_of(candidates, request), drafts_of(found, request)
        kinds = [KIND_NAMES[kind] for kind in joined.kinds[request, : len(drafts)].tolist()]
        assert kinds == reference.kinds_of(nodes, drafts)
        got = paths_of(joined.candidates, request)
        assert len(dict(got)) == len(got), "a path stands twice"
        assert dict(got) == reference.join(nodes, drafts, survival[request].tolist())


@settings(max_examples=50)
@given(st.lists(CONTEXT, min_size=1, max_size=4), SHAPES, CHANCE, st.integers(2, 12))
def test_rows_of_both_are_a_tree_and_the_likeliest(
    contexts: list[list[int]], shape: Shape, chance: int, rows: int
) -> None:
    joined = join(
        candidates=random_tree_of(shape, batch=len(contexts), chance=chance),
        lookup=found_in(contexts),
        counts=some_counts(chance),
    ).candidates
    parents = joined.survival.gather(1, joined.parents.clamp(min=0))
    there = (joined.survival > 0) & (joined.parents >= 0)
    assert (parents[there] >= joined.survival[there]).all(), "survival rises along a path"
    budgets = torch.full((len(contexts),), rows)
    tree = select_rows(candidates=joined, row_budgets=budgets, width=rows).tree
    check_tree(tree)
    for request in range(len(contexts)):
        kept = sorted((value for _, value in paths_of(joined, request)), reverse=True)
        assert int(tree.row_counts[request]) == min(rows, len(kept))


@settings(max_examples=50)
@given(st.lists(CONTEXT, min_size=1, max_size=4), st.integers(1, TOKENS + 1), CHANCE)
def test_of_two_chains_the_one_that_promises_more_is_taken(contexts: list[list[int]], rows: int, chance: int) -> None:
    found, counts = found_in(contexts), some_counts(chance)
    candidates = random_tree_of(Shape(TOKENS, 1, 1), batch=len(contexts), chance=chance)
    most_rows = torch.full((len(contexts),), rows)
    chain = better_chain(candidates=candidates, lookup=found, counts=counts, most_rows=most_rows).candidates
    both = join(candidates=candidates, lookup=found, counts=counts).candidates
    for request in range(len(contexts)):
        survival = dict(paths_of(both, request))
        drafter = [node.token for node in nodes_of(candidates, request)[1:] if node.survival > 0]
        chains = [drafter, drafts_of(found, request)]
        promised = [sum(survival[tuple(each[: i + 1])] for i in range(min(len(each), rows - 1))) for each in chains]
        got = dict(paths_of(chain, request))
        taken = chains.index(list(max(got, key=len)))
        assert promised[taken] >= max(promised) - 1e-5
        assert got == {path: value for path, value in survival.items() if list(path) == chains[taken][: len(path)]}


def test_without_a_drafter_the_chain_hangs_below_the_anchor() -> None:
    found = found_in([[0, 1, 2, 3, 0, 1], [0, 1, 2]])
    joined = alone(anchors=torch.tensor([1, 2]), lookup=found, counts=no_counts(CPU))
    tree = select_rows(candidates=joined.candidates, row_budgets=torch.tensor([4, 4]), width=4).tree
    assert tree.tokens.tolist() == [[1, 2, 3, 0], [2, 0, 0, 0]]
    assert tree.row_counts.tolist() == [4, 1]
    check_tree(tree)


def judged(drafts: Sequence[int], emitted: Sequence[int], known: int, matched: int = 3) -> dict[int, tuple[int, int]]:
    """What is counted of one request's drafts, by length of match."""
    found = Lookup(torch.tensor([drafts]), torch.tensor([matched]), torch.ones(1, len(drafts), dtype=torch.bool))
    at, counts = cells(lookup=found, kinds=torch.full((1, len(drafts)), ALONE)), no_counts(CPU)
    count(counts=counts, cells=at, drafts=found.tokens, emitted=torch.tensor([emitted]), known=torch.tensor([known]))
    first = ALONE * (LONGEST_MATCH + 1)
    return {i - first: (int(n), int(r)) for i, (n, r) in enumerate(counts.tolist()) if n and i < len(counts) - 1}


def test_a_draft_is_judged_once_those_before_it_were_right() -> None:
    assert judged([5, 6, 7], [5, 6, 7], known=3) == {3: (1, 1), 4: (1, 1), 5: (1, 1)}
    assert judged([5, 6, 7], [5, 9, 7], known=3) == {3: (1, 1), 4: (1, 0)}
    assert judged([5, 6, 7], [5, 6, 7], known=2) == {3: (1, 1), 4: (1, 1)}, "the third has not come"
    assert judged([5, 6, 7], [9, 6, 7], known=3) == {3: (1, 0)}
    assert judged([5, 6, 7], [5, 6, 7], known=0) == {}
    assert judged([5, 6, 7], [5, 6, 7], known=3, matched=LONGEST_MATCH) == {LONGEST_MATCH: (3, 3)}


@settings(max_examples=50)
@given(st.permutations(range(5)), CHANCE)
def test_what_is_counted_does_not_depend_on_the_order_of_requests(order: list[int], chance: int) -> None:
    generator = torch.Generator().manual_seed(chance)

    def some(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    at, drafts, emitted, known = some(20, 5, TOKENS), some(2, 5, TOKENS), some(2, 5, TOKENS), some(TOKENS + 1, 5)
    ranks = [no_counts(CPU), no_counts(CPU)]
    for _ in range(40):
        for counts, places in zip(ranks, (list(range(5)), order), strict=True):
            count(counts=counts, cells=at[places], drafts=drafts[places], emitted=emitted[places], known=known[places])
    assert torch.equal(*ranks)


def test_chances_follow_what_was_counted_and_begin_with_the_prior() -> None:
    counts = no_counts(CPU)
    prior = chances(counts).view(-1)[:-1].view(KINDS, -1)
    lengths = range(LONGEST_MATCH + 1)
    torch.testing.assert_close(prior[ALONE], torch.tensor([n / (n + 2) for n in lengths]))
    torch.testing.assert_close(prior[CONTESTED], prior[ALONE] / 2)
    cell = ALONE * (LONGEST_MATCH + 1) + 4
    counts[cell] = torch.tensor([92, 23])
    assert abs(float(chances(counts)[cell]) - (23 + 8 * 4 / 6) / 100) < 1e-6
    assert float(chances(counts)[-1]) == 0.0


def test_old_counts_fade() -> None:
    counts = no_counts(CPU)
    always, never = torch.ones(64, 1, dtype=torch.int64), torch.zeros(64, 1, dtype=torch.int64)
    cell = torch.full_like(always, 5)
    for emitted in itertools.chain([always] * 40, [never] * 40):
        count(counts=counts, cells=cell, drafts=always, emitted=emitted, known=torch.ones(64, dtype=torch.int64))
    tried, right = counts[5].tolist()
    assert tried <= 1024
    assert right / tried < 0.25
