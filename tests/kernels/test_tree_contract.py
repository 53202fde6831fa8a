"""The tree contract, masks, links, positions and compaction against the plain versions, on ragged random trees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparktier.configs.errors import SparktierError
from sparktier.kernels.draft_tree import DraftTree, anchors_alone, chain_tree, compaction_plan, row_links
from sparktier.kernels.mask import ancestor_words, flat_mask, mask_byte_indptr, packed_mask, unpacked
from sparktier.kernels.reference import tree as reference
from support.dense_mask import dense_mask
from support.oracles.tree_contract import check_tree
from support.random_trees import random_tree

BATCH, CHANCE = st.integers(1, 4), st.integers(0, 2**31)
ROWS = st.one_of(st.integers(1, 9), st.sampled_from([31, 32, 33, 64, 65]))


def drawn_tree(batch: int, rows: int, chance: int) -> DraftTree:
    return random_tree(batch=batch, rows=rows, vocab=4, generator=torch.Generator().manual_seed(chance))


def rule_broken(tree: DraftTree) -> str:
    with pytest.raises(SparktierError) as caught:
        check_tree(tree)
    return str(caught.value)


def test_each_broken_invariant_is_named_with_its_place() -> None:
    tree = drawn_tree(2, 6, 3)._replace(row_counts=torch.tensor([4, 6]))
    tokens, counts = torch.arange(12).view(2, 6), torch.tensor([4, 6])
    parents = torch.tensor([[-1, 0, 1, 1, -1, -1], [-1, 0, 0, 1, 3, 2]])
    depths = torch.tensor([[0, 1, 2, 2, 0, 0], [0, 1, 1, 2, 3, 2]])
    tree = DraftTree(tokens, parents, depths, counts)
    check_tree(tree)

    def with_value(part: Tensor, place: tuple[int, int], value: int) -> Tensor:
        return part.clone().index_put_(tuple(torch.tensor([i]) for i in place), torch.tensor([value]))

    assert "row counts lie in 1..6, got 0 at [request, row] [0]" in rule_broken(tree._replace(row_counts=counts * 0))
    late = tree._replace(parents=with_value(parents, (1, 4), 5))
    assert "a parent is an earlier row, got 5 at [request, row] [1, 4]" in rule_broken(late)
    rooted = tree._replace(parents=with_value(parents, (0, 0), 0))
    assert "the anchor and padding rows have parent -1, got 0 at [request, row] [0, 0]" in rule_broken(rooted)
    padded = tree._replace(depths=with_value(depths, (0, 5), 1))
    assert "the anchor and padding rows have depth 0, got 1" in rule_broken(padded)
    deep = tree._replace(depths=with_value(depths, (1, 4), 2))
    assert "depth is the parent's plus 1, got 2 at [request, row] [1, 4]" in rule_broken(deep)
    twin = tree._replace(tokens=with_value(tokens, (0, 3), 2))
    assert "siblings hold distinct tokens, got 2 at [request, row] [0, 3]" in rule_broken(twin)
    assert "share [batch, rows]" in rule_broken(tree._replace(depths=depths[:, :5]))


@given(BATCH, ROWS, CHANCE)
def test_ancestor_words_are_the_ancestors_alone(batch: int, rows: int, chance: int) -> None:
    tree = drawn_tree(batch, rows, chance)
    words = ancestor_words(tree=tree)
    assert words.dtype == torch.int32
    assert words.shape == (batch, rows, (rows + 31) // 32)
    for request in range(batch):
        for row in range(rows):
            bits = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words[request, row]))
            seen = {column for column in range(32 * words.shape[2]) if bits >> column & 1}
            live = row < int(tree.row_counts[request])
            assert seen == (reference.ancestors(tree.parents[request].tolist(), row) if live else {0})


@settings(max_examples=60)
@given(BATCH, ROWS, CHANCE, st.booleans(), st.integers(0, 9))
def test_packed_bytes_and_indptr_equal_the_oracle(batch: int, rows: int, chance: int, ragged: bool, spare: int) -> None:
    tree = drawn_tree(batch, rows, chance)
    generator = torch.Generator().manual_seed(chance)
    prefix_lens = torch.randint(0, 40, (batch,), generator=generator)
    query_lens = tree.row_counts if ragged else torch.full((batch,), rows)
    tables = [
        reference.mask_rows(
            tree.parents[i].tolist(), *(int(part[i]) for part in (tree.row_counts, prefix_lens, query_lens))
        )
        for i in range(batch)
    ]
    oracle = [reference.pack_bits([bit for row in table for bit in row]) for table in tables]
    indptr = mask_byte_indptr(prefix_lens=prefix_lens, query_lens=query_lens)
    assert indptr.dtype == torch.int32
    assert indptr.tolist() == [sum(map(len, oracle[:i])) for i in range(batch + 1)]
    packed = packed_mask(
        words=ancestor_words(tree=tree),
        row_counts=tree.row_counts,
        prefix_lens=prefix_lens,
        query_lens=query_lens,
        indptr=indptr,
        total_bytes=int(indptr[-1]) + spare,
    )
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [byte for part in oracle for byte in part] + [0] * spare
    for table, tree_rows in zip(tables, tree.row_counts.tolist(), strict=True):
        assert all(sum(row) == 1 for row in table[tree_rows:])


@given(BATCH, ROWS, CHANCE)
def test_flat_mask_and_unpacked_words_equal_the_oracle(batch: int, rows: int, chance: int) -> None:
    tree = drawn_tree(batch, rows, chance)
    prefix_lens = torch.randint(0, 9, (batch,), generator=torch.Generator().manual_seed(chance))
    words = ancestor_words(tree=tree)
    tables = []
    for i, prefix in enumerate(prefix_lens.tolist()):
        count = int(tree.row_counts[i])
        table = reference.mask_rows(tree.parents[i].tolist(), count, prefix, count)
        tables += [bit for row in table for bit in row]
        assert unpacked(words=words)[i, :count, :count].tolist() == [row[prefix:] for row in table]
    assert flat_mask(words=words, row_counts=tree.row_counts, prefix_lens=prefix_lens).tolist() == tables


@given(BATCH, ROWS, CHANCE)
def test_dense_mask_equals_the_oracle(batch: int, rows: int, chance: int) -> None:
    tree = drawn_tree(batch, rows, chance)
    prefix_lens = torch.randint(0, 9, (batch,), generator=torch.Generator().manual_seed(chance))
    dense = dense_mask(
        words=ancestor_words(tree=tree), row_counts=tree.row_counts, prefix_lens=prefix_lens, width=9 + rows
    )
    for i, prefix in enumerate(prefix_lens.tolist()):
        table = reference.mask_rows(tree.parents[i].tolist(), int(tree.row_counts[i]), prefix, rows)
        assert dense[i, :, : prefix + rows].tolist() == table
        assert not dense[i, :, prefix + rows :].any()


@given(BATCH, st.integers(0, 8), CHANCE)
def test_a_one_branch_tree_is_a_causal_chain(batch: int, gamma: int, chance: int) -> None:
    generator = torch.Generator().manual_seed(chance)
    counts = torch.randint(1, gamma + 2, (batch,), generator=generator)
    drafts = torch.randint(9, (batch, gamma), generator=generator)
    tree = chain_tree(anchors=counts, drafts=drafts, row_counts=counts)
    prefix = torch.full((batch,), 5)
    dense = dense_mask(words=ancestor_words(tree=tree), row_counts=counts, prefix_lens=prefix, width=5 + gamma + 1)
    causal = torch.ones(gamma + 1, 5 + gamma + 1, dtype=torch.bool).tril(5)
    for i, count in enumerate(counts.tolist()):
        assert torch.equal(dense[i, :count], causal[:count])
        assert tree.depths[i, :count].tolist() == list(range(count))


@given(BATCH)
def test_anchors_alone_are_chains_without_drafts(batch: int) -> None:
    anchors = torch.arange(batch)
    chains = chain_tree(anchors=anchors, drafts=anchors.new_zeros(batch, 0), row_counts=torch.ones_like(anchors))
    for alone, chain in zip(anchors_alone(anchors), chains, strict=True):
        assert torch.equal(alone, chain)


@given(BATCH, ROWS, CHANCE)
def test_links_and_depths(batch: int, rows: int, chance: int) -> None:
    tree = drawn_tree(batch, rows, chance)
    links = row_links(tree=tree)
    for i in range(batch):
        parents = tree.parents[i].tolist()
        for row in range(rows):
            got = (int(links.next_token[i, row]), int(links.next_sibling[i, row]))
            assert got == reference.links(parents, row)
            depth = len(reference.ancestors(parents, row)) - 1
            assert int(tree.depths[i, row]) == depth


@given(BATCH, ROWS, CHANCE)
def test_compaction_brings_the_path_to_the_front_and_touches_nothing_else(batch: int, rows: int, chance: int) -> None:
    tree = drawn_tree(batch, rows, chance)
    generator = torch.Generator().manual_seed(chance)
    slots = torch.randperm(batch * rows * 2, generator=generator)[: batch * rows].view(batch, rows)
    ends = [int(torch.randint(int(count), (1,), generator=generator)) for count in tree.row_counts]
    paths = [sorted(reference.ancestors(tree.parents[i].tolist(), end)) for i, end in enumerate(ends)]
    width = max(map(len, paths)) + 1
    path = torch.tensor([rows_on + [-1] * (width - len(rows_on)) for rows_on in paths])
    plan = compaction_plan(path=path, slots=slots)
    before = torch.arange(batch * rows * 2) * 10
    after = before.clone()
    after[plan.destination] = before[plan.source]
    untouched = set(range(batch * rows * 2))
    for i, rows_on in enumerate(paths):
        for place, row in enumerate(rows_on):
            assert int(after[slots[i, place]]) == int(before[slots[i, row]])
            untouched.discard(int(slots[i, place]))
    assert all(int(after[slot]) == int(before[slot]) for slot in untouched)
