"""Margins: 0 for what the target chooses, greedy or drawn by keyed noise; how far off any other token is."""

import pytest
import torch
from torch import Tensor

from sparktier.kernels.noise import draw
from sparktier.kernels.target_probs import SamplingRows, target_probs
from sparktier.serving.engine.canary.margins import MOST_NATS, Choice, margins

N, VOCAB, SEED = 200, 300, 77
GREEDY = Choice(temperature=1.0, top_k=1, top_p=1.0, min_p=0.0, seed=SEED)
SAMPLED = [
    Choice(1.0, VOCAB, 1.0, 0.0, SEED),
    Choice(0.6, VOCAB, 1.0, 0.0, SEED),
    Choice(0.8, 20, 1.0, 0.0, SEED),
    Choice(0.9, VOCAB, 0.85, 0.0, SEED),
    Choice(1.0, 50, 0.95, 0.02, SEED),
]
POSITIONS = torch.arange(40, 40 + N)


def rows(scale: float = 3.0, seed: int = 1) -> Tensor:
    return scale * torch.randn(N, VOCAB, generator=torch.Generator().manual_seed(seed))


def chosen(logits: Tensor, choice: Choice) -> Tensor:
    """What sampling under keyed noise takes in each row."""
    if choice.is_greedy:
        return logits.argmax(dim=1)
    full = torch.full((N,), 1.0)
    sampling = SamplingRows(
        temperatures=choice.temperature * full,
        top_ks=(choice.top_k * full).long(),
        top_ps=choice.top_p * full,
        min_ps=choice.min_p * full,
    )
    seeds = torch.full((N,), choice.seed)
    return draw(weights=target_probs(logits=logits, sampling=sampling), seeds=seeds, positions=POSITIONS)


def of(logits: Tensor, tokens: Tensor, choice: Choice) -> Tensor:
    return margins(logits=logits, tokens=tokens, positions=POSITIONS, choice=choice)


@pytest.mark.parametrize("choice", [GREEDY, *SAMPLED], ids=str)
def test_the_target_s_own_choice_has_no_margin(choice: Choice) -> None:
    logits = rows()
    assert of(logits, chosen(logits, choice), choice).max() < 1e-6


@pytest.mark.parametrize("choice", [GREEDY, *SAMPLED], ids=str)
def test_noise_of_the_logits_makes_no_larger_margin(choice: Choice) -> None:
    logits = rows()
    noisy = logits + 0.01 * torch.randn(N, VOCAB, generator=torch.Generator().manual_seed(2)).clamp(-2, 2)
    tokens = chosen(noisy, choice)
    assert (tokens != chosen(logits, choice)).any() or choice.temperature < 1
    # Both ends of a difference move, and the sum that a kept set is cut at.
    assert of(logits, tokens, choice).max() < 0.08


@pytest.mark.parametrize("choice", SAMPLED, ids=str)
def test_a_token_drawn_at_another_position_or_seed_is_far(choice: Choice) -> None:
    logits = rows()
    other = Choice(choice.temperature, choice.top_k, choice.top_p, choice.min_p, SEED + 1)
    tokens = chosen(logits, other)
    differs = tokens != chosen(logits, choice)
    found = of(logits, tokens, choice)
    assert (found[~differs] < 1e-6).all()
    assert found[differs].median() > 0.3


@pytest.mark.parametrize("choice", SAMPLED[2:], ids=str)
def test_a_token_that_the_filters_leave_out_is_as_far_as_it_is_below_them(choice: Choice) -> None:
    logits = rows()
    ranked = logits.sort(dim=1, descending=True)
    found = of(logits, ranked.indices[:, -1], choice)
    kept = ranked.values[:, 0] - 12 < ranked.values[:, -1]
    assert (found[~kept] > 1.0).all()


def test_greedy_margins_are_differences_of_logits() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.5], [2.0, 0.0, -torch.inf]]).repeat(N // 2, 1)
    tokens = torch.tensor([2, 2]).repeat(N // 2)
    assert of(logits, tokens, GREEDY)[:2].tolist() == [0.5, MOST_NATS]


def test_broken_numbers_are_as_far_as_can_be() -> None:
    logits = rows()
    logits[3, 5] = torch.nan
    assert of(logits, chosen(rows(), GREEDY), GREEDY)[3] == MOST_NATS


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"min_p": 0.55}, {"top_p": 0.6}], ids=str)
def test_rounding_may_decide_whether_the_last_token_that_a_filter_keeps_is_kept(filters: dict[str, float]) -> None:
    """Two tokens are kept, a third is hardly below the second: where the second won, the first may be right."""
    logits = torch.full((N, VOCAB), -9.0)
    logits[:, :3] = torch.tensor([1.0, 0.5, 0.4999])
    neutral: dict[str, float] = {"top_k": VOCAB, "top_p": 1.0, "min_p": 0.0}
    choice = Choice(temperature=1.0, **{**neutral, **filters}, seed=SEED)  # type: ignore[arg-type]
    second_won = chosen(logits, choice) == 1
    assert 20 < second_won.sum() < N - 20
    assert of(logits, torch.full((N,), 0), choice)[second_won].max() < 1e-3
    assert of(logits, torch.full((N,), 1), choice)[~second_won].max() > 0.1
