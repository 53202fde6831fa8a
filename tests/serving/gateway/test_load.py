"""Users and tokens that a request brings: each choice of each prompt is a user."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.serving.gateway.requests.load import load_of


@pytest.mark.parametrize(
    ("body", "users"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": "a", "n": 3}, 3),
        ({"prompt": "a", "n": 3.0, "best_of": 3}, 3),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": ["a"]}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [1, 2, 3], "n": 2}, 2),
        ({"prompt": [[1, 2], [3]], "n": 2}, 4),
        ({"messages": [{"role": "user", "content": "a"}] * 3}, 1),
        ({"messages": [{"role": "user", "content": "a"}], "n": 4}, 4),
    ],
)
def test_choices_of_prompts_are_users(body: dict[str, Any], users: int) -> None:
    assert load_of(body).users == users


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": [1, 2, 3], "max_tokens": 7}, 10),
        ({"prompt": [[1, 2], [3]], "n": 2, "max_tokens": 7}, 3 + 4 * 7),
        ({"prompt": "a" * 9, "max_tokens": 7.0}, 3 + 7),
        ({"prompt": [1]}, 1 + 16),
        ({"messages": [], "max_tokens": 5, "max_completion_tokens": 7}, 1 + 7),
        ({"messages": []}, 1 + 1024),
    ],
)
def test_tokens_are_those_of_prompts_and_the_longest_answers(body: dict[str, Any], tokens: int) -> None:
    assert load_of(body).tokens == tokens


@given(prompts=st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1, max_size=5), n=st.integers(1, 5))
def test_a_batch_is_the_sum_of_its_prompts(prompts: list[list[int]], n: int) -> None:
    apart = [load_of({"prompt": prompt, "n": n, "max_tokens": 3}) for prompt in prompts]
    together = load_of({"prompt": prompts, "n": n, "max_tokens": 3})
    assert together.users == sum(load.users for load in apart)
    assert together.tokens == sum(load.tokens for load in apart)
