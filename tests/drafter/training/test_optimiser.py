"""Which parameters move by Muon, which by AdamW, and that moments carry over."""

import pytest
import torch
from torch import Tensor, nn

from sparktier.drafter.training.optimiser import Optimiser

RATE = 1e-3


def parameters() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = {
        "layers.0.mlp.up_proj.weight": (16, 8),
        "layers.0.norm.weight": (8,),
        "markov_head.markov_w1.weight": (16, 8),
    }
    return {name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()}


def give_gradients(named: dict[str, Tensor], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for value in named.values():
        value.grad = torch.randn(value.shape, generator=draw)


def moved(named: dict[str, Tensor]) -> dict[str, Tensor]:
    before = {name: value.detach().clone() for name, value in named.items()}
    give_gradients(named, 2)
    Optimiser(named, weight_decay=0.0).step(RATE)
    return {name: value.detach() - before[name] for name, value in named.items()}


def test_matrices_inside_layers_move_alike_in_all_directions() -> None:
    steps = moved(parameters())
    # The orthogonal part of a matrix has all singular values 1, which Newton-Schulz reaches roughly; times the size
    # of AdamW's steps (arXiv 2502.16982).
    sizes = torch.linalg.svdvals(steps["layers.0.mlp.up_proj.weight"]) / (RATE * 0.2 * 16**0.5)
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3


def test_tables_and_norms_move_by_adamw() -> None:
    named = parameters()
    steps = moved(named)
    give_gradients(named, 2)
    for name in ("layers.0.norm.weight", "markov_head.markov_w1.weight"):
        gradient = named[name].grad
        assert gradient is not None
        # The first step of Adam is the gradient's sign.
        torch.testing.assert_close(steps[name], -RATE * gradient.sign(), rtol=1e-3, atol=1e-6)


def test_moments_carry_over() -> None:
    whole, resumed = parameters(), parameters()
    first, second = Optimiser(whole, 0.0), Optimiser(resumed, 0.0)
    for seed in (3, 4):
        give_gradients(whole, seed)
        first.step(RATE)
    assert first.moments().keys() == first.moment_names
    moments = {name: value.clone() for name, value in first.moments().items()}
    with torch.no_grad():
        for name, value in resumed.items():
            value.copy_(whole[name])
    second.restore(moments, 2)
    for optimiser, named in ((first, whole), (second, resumed)):
        give_gradients(named, 5)
        optimiser.step(RATE)
    for name, value in resumed.items():
        assert torch.equal(value, whole[name]), name


def test_a_cpu_without_bfloat16_units_orthogonalises_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparktier.drafter.training.optimiser.has_bfloat16_units", lambda: False)
    name = "layers.0.mlp.up_proj.weight"
    step = moved(parameters())[name].double() / (-RATE * 0.2 * 16**0.5)
    given = parameters()
    give_gradients(given, 2)
    assert given[name].grad is not None
    torch.testing.assert_close(step, newton_schulz(given[name].grad.double()), rtol=1e-4, atol=1e-4)


def newton_schulz(matrix: Tensor) -> Tensor:
    """Muon's five quintic iterations (Jordan 2024) on a matrix with more rows than columns."""
    found = matrix.T / matrix.norm()
    for _ in range(5):
        gram = found @ found.T
        found = 3.4445 * found + (-4.7750 * gram + 2.0315 * gram @ gram) @ found
    return found.T
