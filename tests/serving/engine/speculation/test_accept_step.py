"""Every walk of the match rule accepts the same, whatever order it reads the target's rows in; when each is used."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparktier.kernels import accept_tree, accept_triton
from sparktier.kernels.accept_tree import TreeAcceptance
from sparktier.kernels.draft_tree import DraftTree, chain_tree
from sparktier.kernels.expand import Shape
from sparktier.serving.engine.slots.penalty_table import PenaltyTable
from sparktier.serving.engine.speculation import accept_step, target_distribution
from sparktier.serving.engine.speculation.accept_step import MatchWalk, accept, match_walk
from sparktier.serving.engine.speculation.draft_step import Drafted
from sparktier.serving.engine.speculation.row_budget import StepBudget
from sparktier.serving.engine.speculation.target_distribution import TargetDistribution
from sparktier.serving.engine.speculation.verify_pass import Verified
from support.oracles.winners_walk import walk_of_winners
from support.random_trees import random_tree

VOCAB = 4
BATCH, ROWS, CHANCE = st.integers(1, 4), st.integers(2, 9), st.integers(0, 2**31)
CPU = torch.device("cpu")


class Request(SimpleNamespace):
    """In the place of SGLang's `Req`; unlike its base it can be referred to weakly."""


def sampling(batch: int, *, temperature: float, top_k: int | None, generator: torch.Generator) -> Any:
    greedy = temperature == 0
    return SimpleNamespace(
        temperatures=torch.full((batch, 1), temperature or 1.0),
        top_ks=torch.full((batch,), 1 if greedy else top_k or VOCAB),
        top_ps=torch.ones(batch),
        min_ps=torch.zeros(batch),
        need_top_k_sampling=top_k is not None,
        need_top_p_sampling=False,
        need_min_p_sampling=False,
        is_any_greedy=greedy,
        is_all_greedy=greedy,
        max_top_k=None,
        sampling_seed=torch.randint(2**62, (batch,), generator=generator),
        logit_bias=torch.randn(batch, VOCAB, generator=generator),
    )


@dataclass(frozen=True)
class Pass:
    """A verify pass over the rows of `tree`, or over `row_counts` of each request, packed request by request."""

    tree: DraftTree
    info: Any
    logits: Tensor
    lengths: Tensor
    requests: Sequence[Any] = ()
    row_counts: Tensor | None = None
    penalties: PenaltyTable = field(default_factory=lambda: PenaltyTable(1, vocab=VOCAB, device=CPU))

    @property
    def counts(self) -> Tensor:
        """[batch] int64: rows of each request in the pass."""
        return self.tree.row_counts if self.row_counts is None else self.row_counts

    def accepted(self, walk: MatchWalk) -> tuple[TreeAcceptance, Tensor]:
        """What `walk` accepts, and the pass's logits after it."""
        counts, rows_each = self.counts, self.tree.tokens.shape[1]
        requests = torch.repeat_interleave(torch.arange(len(counts)), counts)
        first = counts.cumsum(0) - counts
        rows = torch.arange(len(requests)) - first[requests]
        verified = Verified(None, self.logits.clone(), torch.empty(0), first, requests, rows)
        batch = SimpleNamespace(
            reqs=self.requests,
            sampling_info=self.info,
            seq_lens=self.lengths,
            req_pool_indices=torch.arange(len(counts)),
        )
        branching = bool((self.tree.parents.diff(dim=1) < 1).any())
        budget = StepBudget(rows_each - 1, branching, Shape(1, 1, 1), counts, counts)
        distribution = TargetDistribution(
            verified,
            batch=batch,
            tree=self.tree,
            prompt_lens=self.lengths,
            penalties=self.penalties,
            grammar=None,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(accept_step, "match_walk", lambda **_: walk)
            patch.setattr(accept_triton, "walk_matching_triton", walk_of_winners)
            found = accept(distribution, batch, budget, Drafted(self.tree, counts), verified, most_tokens=rows_each - 1)
        return found, verified.logits


def random_pass(tree: DraftTree, info: Any, generator: torch.Generator, **more: Any) -> Pass:
    logits = 2 * torch.randn(int(tree.row_counts.sum()), VOCAB, generator=generator)
    lengths = torch.randint(9000, (len(tree.row_counts),), generator=generator)
    return Pass(tree, info, logits, lengths, **more)


def outcomes(tree: DraftTree, info: Any, generator: torch.Generator) -> dict[MatchWalk, TreeAcceptance]:
    """What each walk accepts of `tree` in the same pass."""
    verified = random_pass(tree, info, generator)
    return {walk: verified.accepted(walk)[0] for walk in MatchWalk}


@settings(max_examples=25)
@given(BATCH, ROWS, CHANCE, st.sampled_from([0.0, 0.7]), st.sampled_from([None, 2]), st.integers(1, 40))
def test_every_walk_of_a_tree_accepts_the_same(
    batch: int, rows: int, chance: int, temperature: float, top_k: int | None, most: int
) -> None:
    generator = torch.Generator().manual_seed(chance)
    tree = random_tree(batch=batch, rows=rows, vocab=VOCAB, generator=generator)
    info = sampling(batch, temperature=temperature, top_k=top_k, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_distribution, "_MOST_PROBABILITIES", most)
        walks = outcomes(tree, info, generator)
    assert all(map(torch.equal, walks[MatchWalk.KERNEL], walks[MatchWalk.BY_LEVEL]))


@settings(max_examples=25)
@given(BATCH, ROWS, CHANCE, st.sampled_from([0.0, 0.7]))
def test_every_walk_of_a_chain_accepts_the_same(batch: int, rows: int, chance: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(chance)
    tokens = torch.randint(VOCAB, (batch, rows), generator=generator)
    counts = torch.randint(1, rows + 1, (batch,), generator=generator)
    tree = chain_tree(anchors=tokens[:, 0], drafts=tokens[:, 1:], row_counts=counts)
    walks = outcomes(tree, sampling(batch, temperature=temperature, top_k=None, generator=generator), generator)
    for other in (MatchWalk.CHAIN, MatchWalk.KERNEL):
        assert all(map(torch.equal, walks[other], walks[MatchWalk.BY_LEVEL]))


@settings(max_examples=25)
@given(BATCH, ROWS, CHANCE, st.sampled_from([0.0, 0.7]))
def test_padding_rows_of_a_request_are_never_accepted(batch: int, rows: int, chance: int, temperature: float) -> None:
    """A GPU isn't asked how many rows a tree has, so up to its bound they are verified."""
    generator = torch.Generator().manual_seed(chance)
    tree = random_tree(batch=batch, rows=rows, vocab=VOCAB, generator=generator)
    info = sampling(batch, temperature=temperature, top_k=None, generator=generator)
    exact = random_pass(tree, info, generator)
    spare = torch.randint(rows, (batch,), generator=generator)
    counts = torch.minimum(tree.row_counts + spare, torch.tensor(rows))
    live = torch.cat([torch.arange(int(count)) < own for count, own in zip(counts, tree.row_counts, strict=True)])
    logits = 9 * torch.randn(len(live), VOCAB, generator=generator)
    logits[live] = exact.logits
    padded = replace(exact, logits=logits, row_counts=counts)
    for walk in (MatchWalk.BY_LEVEL, MatchWalk.KERNEL):
        found, expected = padded.accepted(walk)[0], exact.accepted(walk)[0]
        assert all(map(torch.equal, found, expected))
        assert bool((found.path < tree.row_counts.unsqueeze(1)).all())


@settings(max_examples=25)
@given(BATCH, ROWS, CHANCE)
def test_a_row_that_is_read_again_is_adjusted_once(batch: int, rows: int, chance: int) -> None:
    """A GPU reads the last row of each request at every level, and logprobs are of what is there in the end."""
    generator = torch.Generator().manual_seed(chance)
    tree = random_tree(batch=batch, rows=rows, vocab=VOCAB, generator=generator)
    running = [penalised_request(str(number)) for number in range(batch)]

    def table() -> PenaltyTable:
        counts = PenaltyTable(batch, vocab=VOCAB, device=CPU)
        counts.add_requests(running, list(range(batch)))
        return counts

    info = sampling(batch, temperature=0.0, top_k=None, generator=generator)
    verified = random_pass(tree, info, generator, requests=running, penalties=table())
    on_cpu, logits = verified.accepted(MatchWalk.BY_LEVEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accept_tree, "_places", lambda mask: torch.arange(len(mask)))
        on_gpu, same = replace(verified, penalties=table()).accepted(MatchWalk.BY_LEVEL)
    assert all(map(torch.equal, on_gpu, on_cpu))
    assert torch.equal(same, logits)


def penalised_request(rid: str) -> Any:
    params = SimpleNamespace(
        frequency_penalty=0.5, presence_penalty=0.0, repetition_penalty=1.5, min_new_tokens=0, stop_token_ids=[]
    )
    return Request(rid=rid, sampling_params=params, output_ids=[1], eos_token_ids=None, tokenizer=None)


def test_rows_that_depend_on_each_other_are_always_read_by_level() -> None:
    for on_gpu, branching, sampled, sorted_rows in itertools.product([False, True], repeat=4):
        walk = match_walk(on_gpu=on_gpu, branching=branching, penalised=True, sampled=sampled, sorted_rows=sorted_rows)
        assert walk is MatchWalk.BY_LEVEL


@pytest.mark.parametrize(
    ("on_gpu", "branching", "sampled", "sorted_rows", "walk"),
    [
        (True, True, False, False, MatchWalk.KERNEL),
        (True, True, True, False, MatchWalk.KERNEL),
        (True, True, True, True, MatchWalk.BY_LEVEL),
        (True, False, False, False, MatchWalk.KERNEL),
        (True, False, True, True, MatchWalk.KERNEL),
        (False, True, False, False, MatchWalk.BY_LEVEL),
        (False, False, True, False, MatchWalk.BY_LEVEL),
        (False, False, False, False, MatchWalk.CHAIN),
    ],
)
def test_a_gpu_walks_in_one_launch_and_a_cpu_reads_few_rows(
    on_gpu: bool, branching: bool, sampled: bool, sorted_rows: bool, walk: MatchWalk
) -> None:
    found = match_walk(on_gpu=on_gpu, branching=branching, penalised=False, sampled=sampled, sorted_rows=sorted_rows)
    assert found is walk
