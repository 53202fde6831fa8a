"""The tie rule itself: it lets a true tie pass, and catches a planted divergence, an early end and a wrong router."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.oracles.greedy import assert_same_greedy, first_divergence, float64_model
from support.tiny_moe import make_tiny_moe

PROMPTS = [[40, 50, 60], [70, 80]]
TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_moe(tmp_path_factory.mktemp("tiny"), layers=2)


def greedy(model: Path) -> list[list[int]]:
    """Greedy tokens by full recomputation, in float64."""
    network = float64_model(model)
    outputs = []
    for prompt in PROMPTS:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(TOKENS):
                ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
        outputs.append(ids[len(prompt) :])
    return outputs


@pytest.fixture(scope="module")
def reference(model: Path) -> list[list[int]]:
    return greedy(model)


def test_the_same_output_has_no_tie(model: Path, reference: list[list[int]]) -> None:
    assert assert_same_greedy(reference, reference, PROMPTS, model) == []


@pytest.mark.parametrize("place", [0, 10, TOKENS - 1])
def test_a_planted_divergence_is_caught(model: Path, reference: list[list[int]], place: int) -> None:
    planted = [list(output) for output in reference]
    planted[1][place] = (planted[1][place] + 1) % 256
    with pytest.raises(AssertionError, match=f"1 of 2 outputs diverge .*prompt=1, position={place}"):
        assert_same_greedy(reference, planted, PROMPTS, model)


def test_an_output_that_ends_early_is_caught(model: Path, reference: list[list[int]]) -> None:
    with pytest.raises(AssertionError, match="position=7"):
        assert_same_greedy(reference, [reference[0][:7], reference[1]], PROMPTS, model)


def test_equal_logits_are_a_tie_and_counted(model: Path, reference: list[list[int]], tmp_path: Path) -> None:
    """Give a second token the winner's row of `lm_head`: the two then tie wherever the winner is chosen."""
    first, twin = reference[0][0], 300
    shutil.copytree(model, tmp_path / "tied")
    weights = load_file(tmp_path / "tied" / "model.safetensors")
    weights["lm_head.weight"][twin] = weights["lm_head.weight"][first]
    save_file(weights, tmp_path / "tied" / "model.safetensors", metadata={"format": "pt"})
    other = [[twin, *reference[0][1:]], reference[1]]
    ties = assert_same_greedy(reference, other, PROMPTS, tmp_path / "tied")
    assert [(tie.prompt, tie.position, tie.tokens) for tie in ties] == [(0, 0, (first, twin))]
    assert ties[0].logit_gap < 1e-9


def test_a_router_that_ties_excuses_a_divergence(model: Path, reference: list[list[int]], tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "tied")
    weights = load_file(tmp_path / "tied" / "model.safetensors")
    for layer in range(2):
        weights[f"model.layers.{layer}.mlp.gate.weight"][:] = 0
    save_file(weights, tmp_path / "tied" / "model.safetensors", metadata={"format": "pt"})
    other = [[(reference[0][0] + 1) % 256, *reference[0][1:]], reference[1]]
    (tie,) = assert_same_greedy(reference, other, PROMPTS, tmp_path / "tied")
    assert tie.router_gap == 0.0
    assert tie.logit_gap > 1e-4


def test_first_divergence() -> None:
    assert first_divergence([1, 2], [1, 2]) is None
    assert first_divergence([1, 2], [1, 3]) == 1
    assert first_divergence([1, 2], [1]) == 1
    assert first_divergence([], [5]) == 0
