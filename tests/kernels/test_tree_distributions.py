"""Whole rounds on a toy vocabulary (expand, select under ragged budgets, verify) emit the target's distribution."""

import torch
from torch import Tensor

from sparktier.kernels.accept_tree import RowReader, walk_drawn, walk_matching
from sparktier.kernels.draft_tree import DraftTree
from sparktier.kernels.expand import Candidates, DraftDistributions, MarkovHead, Shape, expand_drawn, expand_top
from sparktier.kernels.noise import draw
from sparktier.kernels.select import Selection, select_rows
from support.oracles.sequence_distribution import (
    EXACT_ABOVE_P,
    WRONG_BELOW_P,
    completed,
    p_value,
    sequence_distribution,
    toy_matrix,
)

VOCAB, SAMPLES, WIDTH, DEPTH = 5, 60_000, 7, 2
TARGET = toy_matrix(vocab=VOCAB, sharpness=0.8, seed=1)
DRAFT = toy_matrix(vocab=VOCAB, sharpness=0.8, seed=2)
HEAD = MarkovHead(w1=torch.eye(VOCAB), w2=DRAFT.log().T)  # softmax(0 + W2 W1[t]) is row t of DRAFT
SEEDS, EACH = torch.arange(SAMPLES), torch.arange(SAMPLES)
ANCHORS, ROUNDS = torch.zeros_like(SEEDS), torch.full_like(SEEDS, 30)
BUDGETS = torch.randint(1, WIDTH + 1, (SAMPLES,), generator=torch.Generator().manual_seed(3))
SHAPE = Shape(depth=DEPTH, parents=2, children=3)
COMMON = {
    "anchors": ANCHORS,
    "block_logits": torch.zeros(SAMPLES, DEPTH, VOCAB),
    "head": HEAD,
    "temperatures": torch.ones(SAMPLES),
    "shape": SHAPE,
}


def target_p_value(committed: Tensor) -> float:
    """Return the p-value that rounds with these committed tokens [n, DEPTH + 1] follow the target's distribution."""
    distribution = sequence_distribution(target=TARGET, anchor=0, length=DEPTH + 1)
    return p_value(tokens=completed(committed=committed, target=TARGET, seed=7), distribution=distribution, vocab=VOCAB)


def drawn_by(tree: DraftTree) -> RowReader:
    def choose(*at: Tensor) -> Tensor:
        positions = ROUNDS[at[0]] + tree.depths[at]
        return draw(weights=TARGET[tree.tokens[at]], seeds=SEEDS[at[0]], positions=positions)

    return choose


def drawn_candidates(shortlist: int | None = None) -> tuple[Candidates, DraftDistributions]:
    return expand_drawn(
        **COMMON,
        slot_acceptance=lambda q, depth: q.topk(3, dim=-1).values,
        seeds=SEEDS,
        anchor_positions=ROUNDS,
        shortlist=shortlist,
    )


def verified(selection: Selection, distributions: DraftDistributions) -> Tensor:
    return walk_drawn(
        tree=selection.tree,
        target_probs=lambda *at: TARGET[selection.tree.tokens[at]],
        draft_probs=lambda *at: distributions.dense(at[0], selection.distributions[at].clamp(min=0)),
        seeds=SEEDS,
        anchor_positions=ROUNDS,
        max_depth=DEPTH,
        max_children=3,
    ).tokens


def test_drawn_tree_under_budgets_emits_the_target() -> None:
    candidates, distributions = drawn_candidates()
    selection = select_rows(candidates=candidates, row_budgets=BUDGETS, width=WIDTH)
    assert target_p_value(verified(selection, distributions)) > EXACT_ABOVE_P


def test_tree_drawn_from_a_shortlist_emits_the_target() -> None:
    candidates, distributions = drawn_candidates(shortlist=3)
    selection = select_rows(candidates=candidates, row_budgets=BUDGETS, width=WIDTH)
    assert target_p_value(verified(selection, distributions)) > EXACT_ABOVE_P


def test_a_shortlist_that_claims_the_whole_vocabulary_is_caught() -> None:
    candidates, listed = drawn_candidates(shortlist=3)
    selection = select_rows(candidates=candidates, row_budgets=BUDGETS, width=WIDTH)
    owners = candidates.tokens.gather(1, _owners_of_distributions(candidates, listed.probs.shape[1]))
    whole = torch.arange(VOCAB).expand(*owners.shape, VOCAB)
    claimed = DraftDistributions(whole, DRAFT[owners], VOCAB)
    assert target_p_value(verified(selection, claimed)) < WRONG_BELOW_P


def _owners_of_distributions(candidates: Candidates, distributions: int) -> Tensor:
    """The node whose children came from each distribution: [batch, distributions]."""
    each = torch.arange(candidates.distributions.shape[1]).expand_as(candidates.distributions)
    # Nodes without a distribution go to a place of no use.
    places = candidates.distributions.where(candidates.distributions >= 0, distributions)
    return torch.zeros(SAMPLES, distributions + 1, dtype=torch.int64).scatter(1, places, each)[:, :distributions]


def test_ranking_drawn_tokens_by_their_own_probability_is_caught() -> None:
    candidates, distributions = drawn_candidates()
    survival = candidates.survival.clone()
    for node in range(1, survival.shape[1]):
        parent = candidates.parents[:, node]
        own = distributions.probs[EACH, candidates.distributions[EACH, parent], candidates.tokens[:, node]]
        survival[:, node] = survival[EACH, parent] * own
    anticipating = candidates._replace(survival=survival)
    selection = select_rows(candidates=anticipating, row_budgets=BUDGETS, width=WIDTH)
    assert target_p_value(verified(selection, distributions)) < WRONG_BELOW_P


def test_top_tree_shaped_by_its_own_probabilities_emits_the_target() -> None:
    candidates = expand_top(**COMMON, edge_acceptance=lambda q, depth: q)
    tree = select_rows(candidates=candidates, row_budgets=BUDGETS, width=WIDTH).tree

    assert target_p_value(walk_matching(tree=tree, choose=drawn_by(tree), max_depth=DEPTH).tokens) > EXACT_ABOVE_P


def test_target_match_emits_the_same_tokens_for_every_tree() -> None:
    emitted = []
    for budgets in (torch.ones_like(BUDGETS), BUDGETS, torch.full_like(BUDGETS, WIDTH)):
        candidates = expand_top(**COMMON, edge_acceptance=lambda q, depth: q)
        tree = select_rows(candidates=candidates, row_budgets=budgets, width=WIDTH).tree

        emitted.append(walk_matching(tree=tree, choose=drawn_by(tree), max_depth=DEPTH).tokens)
    plain, ragged, full = emitted
    assert torch.equal(plain[:, 0], ragged[:, 0])
    both = (ragged >= 0) & (full >= 0)
    assert torch.equal(ragged[both], full[both])
    assert int((full >= 0).sum()) > int((ragged >= 0).sum()) > SAMPLES
