"""Admission that reads what it admits biases the output: the DSpark paper's Appendix A, and its form across rounds."""

import torch
from torch import Tensor

from sparktier.kernels.accept import accept_ratio
from sparktier.kernels.noise import Stream, draw, stream_seeds
from support.oracles.sequence_distribution import (
    EXACT_ABOVE_P,
    WRONG_BELOW_P,
    completed,
    p_value,
    sequence_distribution,
)

TARGET = torch.tensor([0.7, 0.3])
DRAFT = torch.tensor([0.5, 0.5])
STEPS_PER_S = (1.0, 0.5, 0.45)  # capacity when 0, 1 or 2 drafts are verified
FIRST_CONFIDENCE = 0.8
SECOND_CONFIDENCE = torch.tensor([0.9, 0.0])  # of the second draft, after first draft 0 or 1
SAMPLES = 40_000
SEEDS = torch.arange(SAMPLES)


def throughputs(first_draft: Tensor) -> Tensor:
    """Expected tokens/s [n, 3] when 0, 1 or 2 drafts are verified."""
    second = FIRST_CONFIDENCE * SECOND_CONFIDENCE[first_draft]
    expected = torch.stack([torch.ones_like(second), torch.full_like(second, 1.8), 1.8 + second], dim=1)
    return expected * torch.tensor(STEPS_PER_S)


def early_stop(first_draft: Tensor) -> Tensor:
    """Drafts verified when the search ends at the first fall: it falls before any draft's value is read."""
    rises = throughputs(first_draft).diff(dim=1) > 0
    return rises.long().cumprod(dim=1).sum(dim=1)


def run_round(*, drafts: Tensor, row_counts: Tensor, positions: Tensor) -> Tensor:
    return accept_ratio(
        drafts=drafts,
        draft_probs=DRAFT.expand(*drafts.shape, -1),
        target_probs=TARGET.expand(len(drafts), drafts.shape[1] + 1, -1),
        row_counts=row_counts,
        seeds=SEEDS,
        positions=positions,
    ).tokens


def draw_drafts(*, anchors: Tensor, rounds: Tensor, count: int) -> Tensor:
    keys = stream_seeds(seeds=SEEDS, stream=Stream.DRAFT, rounds=rounds)
    rows = DRAFT.expand(SAMPLES, -1)
    return torch.stack([draw(weights=rows, seeds=keys, positions=anchors + i) for i in range(count)], dim=1)


def first_token_p(verified: Tensor, drafts: Tensor, distribution: Tensor) -> float:
    positions = torch.arange(3).expand(SAMPLES, -1)
    tokens = run_round(drafts=drafts, row_counts=verified + 1, positions=positions)[:, :1]
    return p_value(tokens=tokens, distribution=distribution.double(), vocab=2)


def test_global_search_over_live_confidences_emits_085_instead_of_07() -> None:
    drafts = draw_drafts(anchors=torch.zeros_like(SEEDS), rounds=torch.zeros_like(SEEDS), count=2)
    verified = throughputs(drafts[:, 0]).argmax(dim=1)
    assert first_token_p(verified, drafts, TARGET) < WRONG_BELOW_P
    assert first_token_p(verified, drafts, torch.tensor([0.85, 0.15])) > EXACT_ABOVE_P


def test_early_stop_emits_the_target() -> None:
    drafts = draw_drafts(anchors=torch.zeros_like(SEEDS), rounds=torch.zeros_like(SEEDS), count=2)
    assert first_token_p(early_stop(drafts[:, 0]), drafts, TARGET) > EXACT_ABOVE_P


def two_rounds(*, second_round_key: Tensor | None) -> float:
    """Round 2 verifies its draft only if round 1's draft for the same position was token 0: a lagged confidence.

    p-value of the two-token distribution. `second_round_key` None keys the drafts by the round's anchor, as is right.
    """
    start = torch.zeros_like(SEEDS)
    lagged = draw_drafts(anchors=start, rounds=start, count=2)
    first = run_round(drafts=lagged[:, :1], row_counts=start + 2, positions=torch.arange(2).expand(SAMPLES, -1))
    anchors = start + 1
    rounds = anchors if second_round_key is None else second_round_key
    drafts = draw_drafts(anchors=anchors, rounds=rounds, count=1)
    rows = torch.where(lagged[:, 1] == 0, 2, 1)
    second = run_round(drafts=drafts, row_counts=rows, positions=torch.arange(1, 3).expand(SAMPLES, -1))
    tokens = torch.stack([first[:, 0], torch.where(first[:, 1] < 0, second[:, 0], first[:, 1])], dim=1)
    matrix = TARGET.expand(2, -1)
    distribution = sequence_distribution(target=matrix, anchor=0, length=2)
    return p_value(tokens=completed(committed=tokens, target=matrix, seed=5), distribution=distribution, vocab=2)


def test_a_budget_from_lagged_confidences_is_exact_because_noise_is_new_each_round() -> None:
    assert two_rounds(second_round_key=None) > EXACT_ABOVE_P


def test_noise_reused_across_rounds_makes_a_lagged_budget_anticipate() -> None:
    assert two_rounds(second_round_key=torch.zeros_like(SEEDS)) < WRONG_BELOW_P
