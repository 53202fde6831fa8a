"""usage.sparktier: sums over choices, told once, in the place where OpenAI's clients look; and tokens as they come."""

import copy
from typing import Any

import pytest

from sparktier.serving.gateway.engine_times import EngineTimes
from sparktier.serving.gateway.usage import UsageEdit, asking

FIRST = {"spec_verify_ct": 3, "spec_num_correct_drafts": 6, "spec_cap_lens_histogram": [0, 0, 0, 0, 3]}
SECOND = {"spec_verify_ct": 1, "spec_num_correct_drafts": 0, "spec_cap_lens_histogram": [0, 1]}
BOTH = {"tier": "gold", "accepted_length": 2.5, "rounds": 4, "rows_verified": 13}
SHOWN = {"stream": True, "stream_options": {"include_usage": True}}
EACH = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def counted(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def after(message: dict[str, Any]) -> dict[str, Any]:
    """Return a whole answer after the edit."""
    found = copy.deepcopy(message)
    UsageEdit({}, tier="gold").whole(found)
    return found


def sent(edit: UsageEdit, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a client gets of a stream's `messages`."""
    return [message for message in copy.deepcopy(messages) if edit.event(message)]


@pytest.mark.parametrize(
    ("prompt", "told"),
    [("a", True), ([1, 2], True), (["a"], True), ([[1, 2]], True), (["a", "b"], False), ([[1], [2]], False)],
)
def test_several_prompts_are_not_asked_about(prompt: object, told: bool) -> None:
    body = {"prompt": prompt, "n": 2, "return_spec_tokens_details": not told}
    assert asking(body) == {**body, "return_spec_tokens_details": told}
    assert body["return_spec_tokens_details"] is not told


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        ({"spec_tokens_details": FIRST}, {"tier": "gold", "accepted_length": 3.0, "rounds": 3, "rows_verified": 12}),
        ({"spec_tokens_details": [FIRST, SECOND]}, BOTH),
        (None, {"tier": "gold"}),
    ],
)
def test_an_answer_has_it_in_usage(extension: object, expected: dict[str, Any]) -> None:
    answer = {"choices": [{"text": "é"}], "usage": {"total_tokens": 9}, "sglext": extension}
    found = after(answer)
    found.setdefault("sglext", None)
    assert found == {**answer, "usage": {"total_tokens": 9, "sparktier": expected}, "sglext": None}


def test_what_else_the_engine_adds_stays() -> None:
    answer = {"usage": {}, "sglext": {"spec_tokens_details": FIRST, "cached_tokens_details": {"device": 3}}}
    assert after(answer)["sglext"] == {"cached_tokens_details": {"device": 3}}


TOKEN: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": None}
TOLD = {"choices": [], "sglext": {"spec_tokens_details": [FIRST, SECOND]}}
USAGE = {"choices": [], "usage": counted(4, 5)}


def test_a_stream_has_it_in_its_last_usage() -> None:
    found = sent(UsageEdit(SHOWN, tier="gold"), TOKEN, TOLD, USAGE)
    assert found == [TOKEN, {"choices": [], "usage": {**counted(4, 5), "sparktier": BOTH}}]


def test_a_stream_without_usage_is_what_it_would_have_been() -> None:
    assert sent(UsageEdit(SHOWN, tier="gold"), TOKEN, TOKEN, TOLD) == [TOKEN, TOKEN]


@pytest.mark.parametrize(
    ("body", "each", "last"),
    [
        ({}, False, False),
        ({"stream_options": {"include_usage": False, "other": 1}}, False, False),
        (SHOWN, False, True),
        (EACH, True, True),
    ],
)
def test_a_client_sees_the_usage_that_it_asked_for(body: dict[str, Any], each: bool, last: bool) -> None:
    running = TOKEN | {"usage": counted(4, 2)}
    found = sent(UsageEdit(body, tier="gold"), running, USAGE)
    assert found[0] == (running if each else TOKEN)
    assert len(found) == 1 + last


def test_tokens_are_known_at_each_event_and_final_with_the_last() -> None:
    edit = UsageEdit({"n": 2, "prompt": ["a", "b"]}, tier="gold")
    reached = []
    for index, prompt, completion in [(0, 4, 1), (1, 4, 2), (2, 7, 1), (0, 4, 3), (3, 7, 1)]:
        edit.event({"choices": [{"index": index}], "usage": counted(prompt, completion)})
        reached.append((edit.tokens.prompt, edit.tokens.completion))
    # Both choices of a prompt have the same prompt.
    assert reached == [(4, 1), (4, 3), (11, 4), (11, 6), (11, 7)]
    assert edit.tokens.total is None
    edit.event({"choices": [], "usage": counted(11, 9)})
    assert (edit.tokens.prompt, edit.tokens.completion, edit.tokens.total) == (11, 9, 20)


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False, "other": 1}}, SHOWN])
def test_a_stream_is_asked_for_its_tokens_each_time(options: dict[str, Any]) -> None:
    found = asking({**options, "stream": True})["stream_options"]
    assert found == {**options.get("stream_options", {}), "include_usage": True, "continuous_usage_stats": True}
    assert "stream_options" not in asking({"stream": False})


def test_the_tokens_of_an_answer_are_known() -> None:
    edit = UsageEdit({}, tier="gold")
    edit.whole({"usage": counted(4, 5)})
    assert (edit.tokens.prompt, edit.tokens.completion, edit.tokens.total) == (4, 5, 9)


def test_the_speed_that_the_replica_tells_is_in_usage_and_its_event_is_not_sent_on() -> None:
    times = {"arrived_at_ms": 5.0, "ended_ms": 90.0, "first_token_ms": 20.0, "attained_tok_s": 41.256}
    edit = UsageEdit(SHOWN, tier="gold")
    edit.waited_ms = 100.04
    [last] = sent(edit, {"choices": [], "sparktier": times}, USAGE)
    assert last["usage"]["sparktier"] == {"tier": "gold", "attained_tok_s": 41.26, "ttft_ms": 120.0}
    assert edit.times == EngineTimes(**times)
    whole = {"choices": [], "usage": counted(1, 2), "sparktier": times}
    assert after(whole) == {
        "choices": [],
        "usage": {**counted(1, 2), "sparktier": {"tier": "gold", "attained_tok_s": 41.26, "ttft_ms": 20.0}},
    }
