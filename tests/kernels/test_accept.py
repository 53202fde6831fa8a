"""Batched accept rules equal their slow references on ragged batches; greedy rules by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparktier.kernels import accept_tree
from sparktier.kernels.accept import PAD_TOKEN, accept_matching, accept_ratio, residual_weights
from sparktier.kernels.accept_tree import walk_drawn, walk_matching
from sparktier.kernels.draft_tree import chain_tree
from sparktier.kernels.reference import accept as reference
from support.oracles.tree_contract import check_tree
from support.random_trees import random_tree

BATCH, GAMMA, VOCAB, CHANCE = st.integers(1, 5), st.integers(0, 5), st.integers(2, 7), st.integers(0, 2**31)


def sparse_rows(*shape: int, generator: torch.Generator) -> Tensor:
    """Random distributions of which a third of the tokens have no mass (token 0 always has)."""
    weights = torch.rand(*shape, generator=generator) ** 3 + 1e-3
    weights[..., 1:] *= torch.rand(*shape[:-1], shape[-1] - 1, generator=generator) > 1 / 3
    return weights / weights.sum(-1, keepdim=True)


def committed_lists(tokens: Tensor) -> list[list[int]]:
    """Rows without padding; what follows the first pad must be padding."""
    lists = [[token for token in row if token != PAD_TOKEN] for row in tokens.tolist()]
    assert all(row[: len(kept)] == kept for row, kept in zip(tokens.tolist(), lists, strict=True))
    return lists


@given(BATCH, GAMMA, st.integers(2, 3), CHANCE)
def test_matching_equals_the_reference(batch: int, gamma: int, vocab: int, chance: int) -> None:
    generator = torch.Generator().manual_seed(chance)
    drafts = torch.randint(vocab, (batch, gamma), generator=generator)
    chosen = torch.randint(vocab, (batch, gamma + 1), generator=generator)
    rows = torch.randint(1, gamma + 2, (batch,), generator=generator)
    result = accept_matching(drafts=drafts, target_tokens=chosen, row_counts=rows)
    expected = [reference.accept_matching(drafts[i].tolist(), chosen[i].tolist(), int(rows[i])) for i in range(batch)]
    assert committed_lists(result.tokens) == expected
    assert result.accepted.tolist() == [len(tokens) - 1 for tokens in expected]
    assert result.bonus.tolist() == [tokens[-1] for tokens in expected]


@settings(max_examples=80)
@given(BATCH, GAMMA, VOCAB, CHANCE)
def test_ratio_equals_the_reference(batch: int, gamma: int, vocab: int, chance: int) -> None:
    generator = torch.Generator().manual_seed(chance)
    q = sparse_rows(batch, gamma, vocab, generator=generator)
    p = sparse_rows(batch, gamma + 1, vocab, generator=generator)
    p[:, : gamma // 2] = q[:, : gamma // 2]  # equal distributions: the residual has no mass
    drafts = torch.randint(vocab, (batch, gamma), generator=generator)
    rows = torch.randint(1, gamma + 2, (batch,), generator=generator)
    seeds = torch.randint(-(2**62), 2**62, (batch,), generator=generator)
    positions = torch.randint(9000, (batch, 1), generator=generator) + torch.arange(gamma + 1)
    result = accept_ratio(
        drafts=drafts, draft_probs=q, target_probs=p, row_counts=rows, seeds=seeds, positions=positions
    )
    expected = [
        reference.accept_ratio(*(part[i].tolist() for part in (drafts, q, p, rows, seeds, positions)))
        for i in range(batch)
    ]
    assert committed_lists(result.tokens) == expected
    assert result.accepted.tolist() == [len(tokens) - 1 for tokens in expected]
    assert result.bonus.tolist() == [tokens[-1] for tokens in expected]


@settings(max_examples=80)
@given(BATCH, st.integers(1, 10), st.integers(2, 3), CHANCE)
def test_match_walk_equals_the_reference(batch: int, rows: int, vocab: int, chance: int) -> None:
    generator = torch.Generator().manual_seed(chance)
    tree = random_tree(batch=batch, rows=rows, vocab=vocab, generator=generator)
    check_tree(tree)
    chosen = torch.randint(vocab, (batch, rows), generator=generator)
    result = walk_matching(tree=tree, choose=lambda *at: chosen[at], max_depth=rows - 1)
    paths = [
        reference.walk_matching(*(part[i].tolist() for part in (tree.tokens, tree.parents, tree.row_counts, chosen)))
        for i in range(batch)
    ]
    assert [[row for row in path if row >= 0] for path in result.path.tolist()] == paths
    assert result.accepted.tolist() == [len(path) - 1 for path in paths]
    assert committed_lists(result.tokens) == [[int(chosen[i, row]) for row in path] for i, path in enumerate(paths)]
    assert result.bonus.tolist() == [int(chosen[i, path[-1]]) for i, path in enumerate(paths)]


@settings(max_examples=80)
@given(BATCH, st.integers(1, 9), st.integers(2, 5), CHANCE, st.booleans())
def test_drawn_walk_equals_the_reference(batch: int, rows: int, vocab: int, chance: int, as_on_gpu: bool) -> None:
    generator = torch.Generator().manual_seed(chance)
    tree = random_tree(batch=batch, rows=rows, vocab=vocab, generator=generator)
    p, q = (torch.rand(batch, rows, vocab, generator=generator) ** 3 + 1e-3 for _ in range(2))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    seeds = torch.randint(-(2**62), 2**62, (batch,), generator=generator)
    anchors = torch.randint(9000, (batch,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        if as_on_gpu:  # where a walk works on everybody
            patch.setattr(accept_tree, "_places", lambda mask: torch.arange(len(mask)))
        result = walk_drawn(
            tree=tree,
            target_probs=lambda *at: p[at],
            draft_probs=lambda *at: q[at],
            seeds=seeds,
            anchor_positions=anchors,
            max_depth=rows - 1,
            max_children=vocab,
        )
    for i in range(batch):
        parts = (tree.tokens, tree.parents, tree.row_counts, p, q, seeds, anchors)
        path, bonus = reference.walk_drawn(*(part[i].tolist() for part in parts))
        assert [row for row in result.path[i].tolist() if row >= 0] == [0, *path]
        assert int(result.bonus[i]) == bonus
        assert committed_lists(result.tokens)[i] == [*(int(tree.tokens[i, row]) for row in path), bonus]


@given(BATCH, GAMMA, CHANCE)
def test_walking_a_one_branch_tree_is_the_chain_rule(batch: int, gamma: int, chance: int) -> None:
    generator = torch.Generator().manual_seed(chance)
    drafts = torch.randint(2, (batch, gamma), generator=generator)
    chosen = torch.randint(2, (batch, gamma + 1), generator=generator)
    counts = torch.randint(1, gamma + 2, (batch,), generator=generator)
    tree = chain_tree(anchors=torch.zeros(batch, dtype=torch.int64), drafts=drafts, row_counts=counts)
    check_tree(tree)
    walked = walk_matching(tree=tree, choose=lambda *at: chosen[at], max_depth=gamma)
    chain = accept_matching(drafts=drafts, target_tokens=chosen, row_counts=counts)
    assert torch.equal(walked.tokens, chain.tokens)
    assert torch.equal(walked.accepted, chain.accepted)


def test_residual_without_mass_falls_back_to_the_target() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    q = torch.tensor([[0.5, 0.5], [0.4, 0.6]])
    expected = torch.tensor([[0.5, 0.5], [0.5, 0.0]])
    torch.testing.assert_close(residual_weights(target_probs=p, draft_probs=q), expected)
