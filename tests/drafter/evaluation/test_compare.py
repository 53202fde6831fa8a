"""The paired bootstrap on made-up evaluations whose true gain is known."""

import numpy as np
import pytest
import torch

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.evaluation.compare import compare
from sparktier.drafter.evaluation.evaluate import Evaluation
from sparktier.drafter.evaluation.replay import Replay

TOKENS = 60


def made_up(chance_by_answer: np.ndarray, seed: int, tokens: int = TOKENS) -> Evaluation:
    """Return a drafter whose every drafted token is accepted with its answer's chance."""
    rng = np.random.default_rng(seed)
    replays = []
    for chance in chance_by_answer:
        runs = np.minimum(rng.geometric(1 - chance, tokens) - 1, 4)
        remaining = np.arange(tokens, 0, -1)
        accepted = torch.from_numpy(np.minimum(runs, remaining))
        nothing = torch.zeros(tokens, 4)
        replays.append(Replay(torch.arange(tokens), nothing.long(), accepted, torch.from_numpy(remaining), nothing))
    return Evaluation(f"d{seed}", "made up", 1.0, seed, tuple(replays), 1.0, (1.0,) * 4, confident=False)


def hard_and_easy(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 0.8, 60)


def test_a_real_gain_is_found_with_its_size() -> None:
    easy = hard_and_easy(0)
    result = compare(made_up(easy + 0.08, 1), made_up(easy, 2), seed=0)
    # Mean tokens per round is (1 - c^5) / (1 - c) for acceptance c and 4 drafted tokens.
    lengths = [float(np.mean((1 - c**5) / (1 - c))) for c in (easy + 0.08, easy)]
    assert result.low_frac > 0
    assert result.low_frac < result.gain_frac < result.high_frac
    assert result.gain_frac == pytest.approx(lengths[0] / lengths[1] - 1, abs=0.06)
    assert result.answers == 60


def test_the_interval_covers_zero_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        easy = hard_and_easy(seed)
        result = compare(made_up(easy, 1000 + seed), made_up(easy, 2000 + seed), seed)
        covered += result.low_frac <= 0 <= result.high_frac
    # 95% of 60 is 57; below 50 has probability under 0.2%.
    assert covered >= 50


def test_other_answers_are_refused() -> None:
    easy = hard_and_easy(0)
    with pytest.raises(ArtifactError, match="same answers"):
        compare(made_up(easy, 1), made_up(easy, 2, tokens=50), seed=0)
