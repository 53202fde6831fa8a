"""Each of n choices gets its own seed, whatever is sent in between, and nothing is remembered afterwards."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.serving.engine.sampling.choice_seeds import ChoiceSeeds, choice_seed


@dataclass
class Params:
    """Those of SGLang's sampling parameters that count here."""

    sampling_seed: int | None = 7
    n: int = 3
    max_new_tokens: int = 16
    beam_width: int | None = None


def test_choices_of_requests_sent_in_turn_keep_apart() -> None:
    seeds, one, two = ChoiceSeeds(), Params(), Params()
    sent = [seeds.next_params(params).sampling_seed for params in (one, two, two, one, one, two)]
    assert [sent[place] for place in (0, 3, 4)] == [sent[place] for place in (1, 2, 5)]
    assert sent[0] == 7
    assert len(set(sent)) == 3
    assert seeds.next_params(one).sampling_seed == 7  # all three were counted and forgotten


@given(st.integers(0, 2**63 - 1), st.integers(2, 128))
def test_seeds_of_one_request_differ_and_fit(seed: int, n: int) -> None:
    found = {choice_seed(seed, index) for index in range(n)}
    assert len(found) == n
    assert all(0 <= value < 2**63 for value in found)


@pytest.mark.parametrize(
    "params", [Params(n=1), Params(sampling_seed=None), Params(max_new_tokens=0), Params(n=2, beam_width=4)]
)
def test_what_needs_no_own_seed_stays_as_it_is(params: Params) -> None:
    assert ChoiceSeeds().next_params(params) is params


def test_what_was_never_sent_whole_does_not_pile_up() -> None:
    seeds = ChoiceSeeds()
    for _ in range(5000):
        seeds.next_params(Params())
    assert len(seeds._sent) <= 4096
