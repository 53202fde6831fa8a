"""The Triton kernels against their torch oracles. test_triton.py runs this in interpreter mode; a GPU runs it as is."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.kernels.accept_tree import TreeAcceptance, walk_matching
from sparktier.kernels.accept_triton import walk_matching_triton
from sparktier.kernels.expand_triton import top_children_triton
from sparktier.kernels.flashinfer_mask import MaskBuffers
from sparktier.kernels.greedy_triton import greedy_winners_triton
from sparktier.kernels.mask import ancestor_words, mask_byte_indptr, packed_mask
from sparktier.kernels.mask_triton import packed_mask_triton
from sparktier.kernels.noise import draw, exponentials
from sparktier.kernels.noise_triton import draw_triton
from sparktier.kernels.target_probs import NO_TOKEN, greedy_tokens
from sparktier.kernels.verify.attention_tables import AttentionTables, TreeMask, write_tables
from sparktier.kernels.verify.attention_tables_triton import write_tables_triton
from sparktier.kernels.verify.commit import Commit, commit_of
from sparktier.kernels.verify.commit_triton import commit_triton
from sparktier.kernels.vocab_search import top_tokens
from sparktier.kernels.winners import of_tokens
from support.random_trees import random_tree

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def generator(chance: int) -> torch.Generator:
    return torch.Generator().manual_seed(chance)


@pytest.mark.parametrize(("rows", "vocab"), [(1, 3), (3, 1024), (5, 2500)])
def test_draw(rows: int, vocab: int) -> None:
    chance = generator(vocab)
    weights = torch.rand(rows, vocab, generator=chance) ** 6
    weights[:, ::3] = 0.0
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=chance)
    keys = {"seeds": seeds.to(DEVICE), "positions": torch.randint(9000, (rows,), generator=chance).to(DEVICE)}
    expected = draw(weights=weights, **{name: key.cpu() for name, key in keys.items()})
    for same in (weights, weights.repeat(1, 2)[:, :vocab]):  # contiguous rows and strided ones
        assert draw_triton(weights=same.to(DEVICE), **keys).tolist() == expected.tolist()


def test_draw_from_one_hot_rows_and_from_the_far_tail() -> None:
    one_hot = torch.eye(1500, device=DEVICE)[[7, 1030, 1499]]
    keys = torch.arange(3, device=DEVICE)
    assert draw_triton(weights=one_hot * 1e-30, seeds=keys, positions=keys).tolist() == [7, 1030, 1499]


@settings(max_examples=40)
@given(
    batch=st.integers(1, 4),
    rows=st.integers(1, 40),
    vocab=st.integers(2, 4),
    spare_levels=st.integers(0, 2),
    silent=st.booleans(),
    chance=st.integers(0, 2**31),
)
def test_walk(batch: int, rows: int, vocab: int, spare_levels: int, silent: bool, chance: int) -> None:
    tree = random_tree(batch=batch, rows=rows, vocab=vocab, generator=generator(chance))
    # NO_TOKEN in some rows, where the target says nothing.
    chosen = torch.randint(NO_TOKEN if silent else 0, vocab, (batch, rows), generator=generator(chance))
    max_depth = int(tree.depths.max()) + spare_levels
    oracle = walk_matching(tree=tree, choose=lambda *at: chosen[at], max_depth=max_depth)
    there = type(tree)(*(part.to(DEVICE) for part in tree))
    counts = tree.row_counts
    first = (counts.cumsum(0) - counts).to(DEVICE)
    live = tree.live.nonzero(as_tuple=True)
    got = walk_matching_triton(tree=there, winners=of_tokens(chosen[live].to(DEVICE)), first=first, max_depth=max_depth)
    assert all(a.tolist() == b.tolist() for a, b in zip(got, oracle, strict=True))


def odd_logits(rows: int, vocab: int, chance: int) -> torch.Tensor:
    """Logits with ties within and across blocks, and rows that say nothing: NaN, +inf, only -inf."""
    logits = torch.randn(rows, vocab, generator=generator(chance)).round(decimals=1)
    logits[:, ::7] = -torch.inf
    for row, value in zip(range(0, rows, 2), (torch.nan, torch.inf, -torch.inf), strict=False):
        logits[row, :: 1 if value == -torch.inf else vocab - 1] = value
    return logits


@pytest.mark.parametrize(("rows", "vocab"), [(1, 3), (6, 4096), (7, 4097), (6, 9000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_winners(rows: int, vocab: int, dtype: torch.dtype) -> None:
    logits = odd_logits(rows, vocab, vocab).to(dtype)
    expected = greedy_tokens(logits=logits)
    assert set(expected.tolist()) & {NO_TOKEN}
    for same in (logits, logits.repeat(1, 2)[:, :vocab]):  # contiguous rows and strided ones
        assert greedy_winners_triton(logits=same.to(DEVICE)).best.tolist() == expected.tolist()


@settings(max_examples=15)
@given(batch=st.integers(1, 3), rows=st.integers(1, 9), vocab=st.sampled_from([3, 4097]), chance=st.integers(0, 2**31))
def test_walk_over_the_winners_of_blocks(batch: int, rows: int, vocab: int, chance: int) -> None:
    tree = random_tree(batch=batch, rows=rows, vocab=3, generator=generator(chance))
    counts = tree.row_counts
    first, live = counts.cumsum(0) - counts, tree.live.nonzero(as_tuple=True)
    logits = odd_logits(len(live[0]), vocab, chance)
    logits[:, :3] += 4.0  # what trees hold wins often
    chosen = torch.zeros_like(tree.tokens)
    chosen[live] = greedy_tokens(logits=logits)
    oracle = walk_matching(tree=tree, choose=lambda *at: chosen[at], max_depth=rows)
    there = type(tree)(*(part.to(DEVICE) for part in tree))
    winners = greedy_winners_triton(logits=logits.to(DEVICE))
    got = walk_matching_triton(tree=there, winners=winners, first=first.to(DEVICE), max_depth=rows)
    assert all(a.tolist() == b.tolist() for a, b in zip(got, oracle, strict=True))


@pytest.mark.parametrize("vocab", [5, 2048, 2049, 4500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_top_children(vocab: int, dtype: torch.dtype) -> None:
    bias = torch.randn(2, 3, vocab, generator=generator(vocab)).to(dtype)
    block_row = (3 * torch.randn(2, vocab, generator=generator(vocab + 1))).to(dtype)
    block_row[0, : vocab // 2] = -torch.inf  # as a grammar leaves it
    block_row[1, ::2] = block_row[1, 1:vocab:2].repeat(2)[: len(block_row[1, ::2])]
    temperatures = torch.tensor([0.7, 1.0])
    logits = (bias.float() + block_row.unsqueeze(1)) / temperatures.view(-1, 1, 1)
    best, tokens = top_tokens(scores=logits, count=4)
    q, got = top_children_triton(
        bias=bias.to(DEVICE), block_row=block_row.to(DEVICE), temperatures=temperatures.to(DEVICE), count=4
    )
    finite = best > -torch.inf
    assert torch.equal(got.cpu()[finite], tokens[finite])
    expected = torch.exp(best - logits.logsumexp(dim=-1, keepdim=True))
    torch.testing.assert_close(q.cpu(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("batch", "rows", "padded"), [(1, 1, None), (3, 9, None), (2, 33, 33), (2, 40, None), (2, 9, 50)]
)
def test_packed_mask(batch: int, rows: int, padded: int | None) -> None:
    tree = random_tree(batch=batch, rows=rows, vocab=4, generator=generator(rows))
    prefix_lens = torch.randint(0, 200, (batch,), generator=generator(rows))
    query_lens = tree.row_counts if padded is None else torch.full((batch,), padded)
    indptr = mask_byte_indptr(prefix_lens=prefix_lens, query_lens=query_lens)
    total = int(indptr[-1])
    inputs = {
        "words": ancestor_words(tree=tree),
        "row_counts": tree.row_counts,
        "prefix_lens": prefix_lens,
        "query_lens": query_lens,
        "indptr": indptr,
    }
    oracle = packed_mask(**inputs, total_bytes=total + 5)
    there = {name: value.to(DEVICE) for name, value in inputs.items()}
    assert packed_mask_triton(**there, total_bytes=total + 5).tolist() == oracle.tolist()


def test_noise_is_the_hash_of_sglang() -> None:
    """The exponentials are those of `multinomial_with_seed`, computed by SGLang's own kernel."""
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "kernels/ops/sampling/murmur_hash.py"
    spec = importlib.util.spec_from_file_location("sglang_murmur_hash", path)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    seeds = torch.tensor([0, 1, 42, -1, 2**40 + 3, -(2**62)])
    positions, columns = torch.tensor([0, 1, 7, 4095, 2**31 - 1, 9]), torch.arange(1500)
    there = (part.to(DEVICE) for part in (seeds.view(torch.uint64), positions, columns))
    hashed = torch.empty(6, 1500, dtype=torch.uint32, device=DEVICE)
    theirs.murmur_hash32_kernel[(6, 2)](*there, hashed, 6, 1500, BLOCK_SIZE=1024)
    uniform = hashed.cpu().to(torch.float64) / (2**32 - 1)
    expected = -uniform.log()
    torch.testing.assert_close(
        exponentials(seeds=seeds, positions=positions, columns=columns), expected, rtol=1e-12, atol=0
    )


@settings(max_examples=60)
@given(
    batch=st.integers(1, 5),
    rows=st.integers(1, 20),
    levels=st.integers(1, 6),
    spare=st.integers(0, 3),
    chance=st.integers(0, 2**31),
)
def test_commit(batch: int, rows: int, levels: int, spare: int, chance: int) -> None:
    draws = generator(chance)
    accepted = torch.randint(min(rows, levels), (batch,), generator=draws)
    each = torch.arange(levels)
    below = each > accepted.unsqueeze(1)
    path = torch.randint(rows, (batch, levels), generator=draws).sort(dim=1).values
    path[:, 0] = 0
    tokens = torch.randint(100, (batch, levels), generator=draws)
    bonus = torch.where(
        torch.rand(batch, generator=draws) < 0.3, NO_TOKEN, tokens.gather(1, accepted.unsqueeze(1))[:, 0]
    )
    outcome = TreeAcceptance(accepted, path.masked_fill(below, -1), tokens.masked_fill(below, -1), bonus)
    depths = torch.randint(levels, (batch, rows + spare), generator=draws)
    slots = torch.randint(10_000, (batch, max(rows, levels) + spare), generator=draws)
    given_to = {
        "accepted": outcome,
        # Narrowed rows of wider tensors, as a shorter rung's are.
        "depths": depths[:, :rows],
        "seq_lens": torch.randint(1, 5000, (batch,), generator=draws),
        "slots": slots,
        "first": torch.randint(500, (batch,), generator=draws),
    }
    expected = commit_of(**given_to)
    found = Commit(*commit_triton(**{name: on_device(value) for name, value in given_to.items()}))
    for name, one, other in zip(expected._fields, expected, found, strict=True):
        assert one.dtype == other.dtype, name
        assert one.tolist() == other.tolist(), name


def on_device(value: object) -> object:
    """On the device, tensor by tensor, with the strides that it has."""
    if isinstance(value, TreeAcceptance):
        return TreeAcceptance(*(part.to(DEVICE) for part in value))
    assert isinstance(value, torch.Tensor)
    return value.to(DEVICE)


@settings(max_examples=40)
@given(
    requests=st.integers(1, 4),
    empty=st.integers(0, 3),
    width=st.integers(1, 40),
    equal=st.booleans(),
    has_tree=st.booleans(),
    chance=st.integers(0, 2**31),
)
def test_attention_tables(requests: int, empty: int, width: int, equal: bool, has_tree: bool, chance: int) -> None:
    draws = generator(chance)
    slots = requests + empty
    tree = random_tree(batch=requests, rows=width, vocab=50, generator=draws)
    live = torch.full((requests,), width) if equal else tree.row_counts
    rows = torch.full((slots,), width) if equal else torch.cat([live, torch.randint(3, (empty,), generator=draws)])
    if not equal:
        # The last slot has the rows that a bucket leaves over, beyond the tree's width perhaps.
        rows[-1] += int(torch.randint(50, (1,), generator=draws))
    prefix = torch.cat([torch.randint(1, 700, (requests,), generator=draws), torch.ones(empty, dtype=torch.int64)])
    size = int(((rows * (prefix + rows) + 7) // 8).sum())
    most = int(((rows * (prefix + rows) + 7) // 8).max())
    mask = TreeMask(ancestor_words(tree=tree), live.int(), most) if has_tree else None
    found, expected = (made_tables(slots, size, device) for device in (DEVICE, "cpu"))
    write_tables(tables=expected, prefix_lens=prefix, rows=rows.int(), tree=mask)
    there = None if mask is None else TreeMask(mask.words.to(DEVICE), mask.live.to(DEVICE), most)
    for _ in range(2):
        write_tables_triton(
            keys=found.keys,
            qo_indptr=found.qo_indptr,
            kv_indptr=found.kv_indptr,
            mask_indptr=found.mask.indptr,
            packed=found.mask.packed,
            prefix_lens=prefix.to(DEVICE),
            rows=rows.int().to(DEVICE),
            tree=there,
        )
        for name, one, other in zip(expected._fields[:3], expected[:3], found[:3], strict=True):
            assert one.tolist() == other.tolist(), name
        if has_tree:
            assert found.mask.indptr.tolist() == expected.mask.indptr.tolist()
        assert found.mask.packed.tolist() == expected.mask.packed.tolist()


def made_tables(slots: int, size: int, device: str) -> AttentionTables:
    """Tables as a pass before may have left them."""
    keys = torch.full((slots,), -7, device=device)
    qo_indptr, kv_indptr, indptr = (torch.full((slots + 1,), -7, dtype=torch.int32, device=device) for _ in range(3))
    packed = torch.full((size + 9,), 255, dtype=torch.uint8, device=device)
    return AttentionTables(keys, qo_indptr, kv_indptr, MaskBuffers(packed, indptr))
