"""The oracle of greedy answers finds a wrong token and a forgotten penalty, and passes the target's own text."""

from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM

from support.oracles.greedy_distribution import GreedyDistribution, Penalty
from support.tiny_moe import make_tiny_moe

PROMPT = [7, 90, 200, 31]


@dataclass(frozen=True)
class Known:
    """A checkpoint's distribution, and what it says greedily after PROMPT."""

    distribution: GreedyDistribution
    text: list[int]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    target = make_tiny_moe(tmp_path_factory.mktemp("distribution") / "target", context_gain=0.2)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    text = model.generate(torch.tensor([PROMPT]), max_new_tokens=96, do_sample=False, pad_token_id=1)
    return Known(GreedyDistribution(target), text[0, len(PROMPT) :].tolist())


def test_the_target_s_own_text_is_right_and_one_other_token_is_not(known: Known) -> None:
    assert not known.distribution.wrong(PROMPT, known.text, Penalty())
    other = [*known.text[:9], (known.text[9] + 1) % 500, *known.text[10:]]
    assert 9 in known.distribution.wrong(PROMPT, other, Penalty())


@pytest.mark.parametrize("penalty", [Penalty(frequency=1.5), Penalty(presence=2.0), Penalty(repetition=1.5)], ids=str)
def test_text_without_the_penalty_is_wrong_under_it(known: Known, penalty: Penalty) -> None:
    assert known.distribution.wrong(PROMPT, known.text, penalty)
