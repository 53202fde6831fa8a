"""What ends a draft's graph proposes the same rows as an eager step, replay after replay into the same buffers."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.models.dspark import VanillaMarkov
from sglang.srt.speculative.dspark_components.dspark_draft import DraftBlockProposer
from torch import Tensor

from sparktier.kernels.expand import Shape
from sparktier.kernels.mask import ancestor_words
from sparktier.serving.engine.rank_options import TreeBounds
from sparktier.serving.engine.slots.prompt_lookup import PromptLookup
from sparktier.serving.engine.speculation.draft_step import Drafted, DraftStep
from sparktier.serving.engine.speculation.draft_tail import VARIANT
from sparktier.serving.engine.speculation.edge_acceptance import EdgeTable
from sparktier.serving.engine.speculation.row_budget import StepBudget
from support.launches.fake_step import NO_SYNC, capturing

VOCAB, RANK, BLOCK, MOST = 11, 4, 3, 6
# Numbers of requests that graphs are captured for; others are padded up to the next.
CAPTURED = (1, 3, MOST)
CONTEXT = 30
TREE = TreeBounds(rows=7, parents=2, children=3)
CPU = torch.device("cpu")


def random_worker(generator: torch.Generator, *, query_rows: int) -> Any:
    """A worker whose draft's logits are its hidden states times a matrix."""
    head = VanillaMarkov(vocab_size=VOCAB, markov_rank=RANK)
    for layer in (head.markov_w1, head.markov_w2):
        layer.weight.data = torch.randn(VOCAB, RANK, generator=generator)
    out = torch.randn(RANK, VOCAB, generator=generator)
    model = SimpleNamespace(markov_head=head, compute_base_logits=lambda hidden: (hidden @ out, None))
    return SimpleNamespace(
        device="cpu",
        gamma=BLOCK,
        query_token_num=query_rows,
        draft_model=model,
        target_worker=SimpleNamespace(model_runner=SimpleNamespace(model=None)),
        _draft_block_spec_info=SimpleNamespace(),
        _draft_context=nullcontext,
        _resolve_target_embed_tokens=lambda _model: None,
        _tp_sync=NO_SYNC,
    )


class Proposer(DraftBlockProposer):
    """SGLang's, whose layers are random here; a captured tail runs over the next captured number of requests."""

    _base_logits_context = staticmethod(nullcontext)
    noise = SimpleNamespace(key=0, offset=torch.zeros(1, dtype=torch.int64))

    def __init__(self, worker: Any, generator: torch.Generator) -> None:
        self._worker, self._generator = worker, generator
        self._staged_params_key, self.num_staged_params_calls, self.num_staged_params_skips = None, 0, 0

    def draw(self, requests: int) -> None:
        """Take other hidden states from now on."""
        rows = self._worker.query_token_num
        self.hidden = torch.randn(requests * rows, RANK, generator=self._generator)

    def _run_forward(self, *, batch: Any, draft_sampler: Any = None, sampling_info: Any = None, **_: Any) -> Any:
        requests, rows = len(batch.seq_lens), self._worker.query_token_num
        if draft_sampler is not None:
            self._stage_sampling_params(draft_sampler, bs=requests, sampling_info=sampling_info)
            captured = next(size for size in CAPTURED if size >= requests)
            padding = torch.randn((captured - requests) * rows, RANK, generator=self._generator)
            ids = torch.zeros(captured, rows, dtype=torch.int64)
            ids[:requests, 0] = batch.spec_info.bonus_tokens
            with capturing(getattr(self._worker._draft_block_spec_info, VARIANT)):
                draft_sampler(torch.cat([self.hidden, padding]), ids.flatten())
        # Without the rows of anchors.
        own = self.hidden.view(requests, rows, RANK)[:, rows - BLOCK :]
        return SimpleNamespace(raw_hidden=own.flatten(0, 1), can_run_graph=draft_sampler is not None)


def random_batch(requests: int, generator: torch.Generator) -> Any:
    greedy = torch.rand(requests, generator=generator) < 0.5
    info = SimpleNamespace(
        temperatures=torch.rand(requests, 1, generator=generator) + 0.1, top_ks=torch.where(greedy, 1, 50)
    )
    anchors = torch.randint(VOCAB, (requests,), generator=generator)
    lengths = torch.randint(3, CONTEXT, (requests,), generator=generator)
    slots = torch.randperm(MOST, generator=generator)[:requests]
    return SimpleNamespace(
        sampling_info=info,
        seq_lens=lengths,
        req_pool_indices=slots,
        spec_info=SimpleNamespace(bonus_tokens=anchors),
    )


def random_contexts(generator: torch.Generator) -> list[Any]:
    """Requests whose tokens are few, so that they recur."""
    tokens = torch.randint(3, (MOST, CONTEXT), generator=generator).tolist()
    return [SimpleNamespace(origin_input_ids=each, output_ids=[]) for each in tokens]


def random_budget(kind: str, requests: int, generator: torch.Generator, *, looks_up: bool = False) -> StepBudget:
    """A step's bounds: of a tree, or of a chain that may be shorter than the block."""
    tokens, shape = (TREE.rows - 1, Shape(BLOCK, 2, 3)) if kind == "tree" else (BLOCK, Shape(BLOCK, 1, 1))
    if kind == "short":
        tokens, shape = 2, Shape(2, 1, 1)
    useful = torch.randint(-1, BLOCK + 2, (requests,), generator=generator)
    counts = torch.randint(1, tokens + 2, (requests,), generator=generator)
    if kind != "tree":
        counts = torch.minimum(counts, useful.clamp(min=0) + 1)
    return StepBudget(tokens, kind == "tree", shape, counts, useful, lookup_tokens=tokens if looks_up else 0)


@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("query_rows", [BLOCK, BLOCK + 1])
@settings(max_examples=15)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["tree", "chain", "short"]), st.integers(1, MOST)), min_size=2),
    chance=st.integers(0, 2**31),
)
def test_what_a_graph_proposes_is_what_an_eager_step_does(
    query_rows: int, paced: bool, steps: list[tuple[str, int]], chance: int
) -> None:
    generator = torch.Generator().manual_seed(chance)
    worker = random_worker(generator, query_rows=query_rows)
    worker._proposer = Proposer(worker, generator)
    edges = EdgeTable([(1.0, 0.0), (0.8, 0.3), (1.2, -0.1)], device=CPU)
    eager, captured = (DraftStep(worker, edges, needs_trees=True) for _ in range(2))
    captured.capture_tail(most_requests=MOST, tree=TREE, paced=paced)
    for kind, requests in steps:
        worker._proposer.draw(requests)
        batch, budget = random_batch(requests, generator), random_budget(kind, requests, generator)
        if paced:
            budget = budget._replace(pace=SimpleNamespace(is_decided=True, nodes=budget.draft_tokens))
        one, other = (step.run(batch, None, budget, drawn=False) for step in (eager, captured))
        assert_same(one, other, most_rows=budget.most_rows)


@settings(max_examples=12)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["tree", "chain", "short"]), st.integers(1, MOST)), min_size=2),
    chance=st.integers(0, 2**31),
)
def test_a_graph_finds_in_contexts_what_an_eager_step_does(steps: list[tuple[str, int]], chance: int) -> None:
    generator = torch.Generator().manual_seed(chance)
    worker = random_worker(generator, query_rows=BLOCK)
    worker._proposer = Proposer(worker, generator)
    edges = EdgeTable([(1.0, 0.0), (0.8, 0.3), (1.2, -0.1)], device=CPU)
    lookups = [
        PromptLookup(MOST, context_tokens=CONTEXT, tokens=TREE.rows - 1, vocabulary=VOCAB, device=CPU) for _ in range(2)
    ]
    contexts = random_contexts(generator)
    for lookup in lookups:
        lookup.add_requests(contexts, range(MOST))
    eager, captured = (DraftStep(worker, edges, needs_trees=True, lookup=lookup) for lookup in lookups)
    captured.capture_tail(most_requests=MOST, tree=TREE, paced=False)
    for kind, requests in steps:
        worker._proposer.draw(requests)
        batch = random_batch(requests, generator)
        budget = random_budget(kind, requests, generator, looks_up=True)
        # A graph drafts whole blocks, so on the short rung it knows more of what it counts.
        lookups[0].counts.copy_(lookups[1].counts)
        lookups[0]._cells.copy_(lookups[1]._cells)
        one, other = (step.run(batch, None, budget, drawn=False) for step in (eager, captured))
        assert_same(one, other, most_rows=budget.most_rows)


def assert_same(eager: Drafted, captured: Drafted, *, most_rows: Tensor) -> None:
    assert all(map(torch.equal, eager.tree, captured.tree))
    assert torch.equal(captured.row_counts, most_rows)
    assert bool((captured.row_counts >= captured.tree.row_counts).all())
    assert (eager.survival is None) == (captured.survival is None)
    if eager.survival is not None and captured.survival is not None:
        # A product over a larger batch may round differently.
        torch.testing.assert_close(eager.survival, captured.survival)
    if captured.words is not None:
        assert torch.equal(captured.words, ancestor_words(tree=eager.tree))


def test_a_batch_larger_than_any_graph_is_drafted_without_one() -> None:
    generator = torch.Generator().manual_seed(0)
    worker = random_worker(generator, query_rows=BLOCK)
    worker._proposer = Proposer(worker, generator)
    step = DraftStep(worker, EdgeTable([(1.0, 0.0)] * 3, device=CPU), needs_trees=True)
    step.capture_tail(most_requests=MOST, tree=TREE, paced=False)
    stock = worker._proposer._run_forward
    worker._proposer._run_forward = lambda **given: stock(batch=given["batch"])
    worker._proposer.draw(MOST + 1)
    drafted = step.run(random_batch(MOST + 1, generator), None, random_budget("tree", MOST + 1, generator), drawn=False)
    assert len(drafted.tree.tokens) == MOST + 1
