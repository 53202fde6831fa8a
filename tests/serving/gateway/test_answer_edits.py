"""Offsets of tokens in a text, and the one call of a tool, in whole answers and in streams."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from sparktier.serving.gateway.answer_edits import Edit, edits_for

LOGPROBS = {"prompt": "Hello", "logprobs": 1}


def edited(message: dict[str, Any], edits: Sequence[Edit]) -> dict[str, Any]:
    found = copy.deepcopy(message)
    for edit in edits:
        edit(found)
    return found


def choice(text: str, tokens: list[str], index: int = 0) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": {"tokens": tokens, "text_offset": [-1] * len(tokens)}}


def offsets(*choices: dict[str, Any]) -> list[list[int]]:
    message = edited({"choices": list(choices)}, edits_for(LOGPROBS))
    return [item["logprobs"]["text_offset"] for item in message["choices"]]


@pytest.mark.parametrize(
    ("text", "tokens", "found"),
    [
        ("Say hi there", ["Say", " hi", " th", "ere"], [0, 3, 6, 9]),
        ("aaa", ["a", "a", "a"], [0, 1, 2]),
        # A special token that is not shown.
        ("ab", ["<|bos|>", "a", "b", "<|eos|>"], [0, 0, 1, 2]),
        # One character of four tokens, each a byte.
        ("x\U00020bb7ab", ["x", "\xf0", "\xa0", "\xae", "\xb7", "a", "b"], [0, 1, 1, 1, 1, 2, 3]),
        # What a stop string took away.
        ("one", ["one", " two"], [0, 3]),
        ("", ["a"], [0]),
    ],
)
def test_a_token_begins_where_the_text_has_it(text: str, tokens: list[str], found: list[int]) -> None:
    assert offsets(choice(text, tokens)) == [found]


def test_each_choice_has_offsets_of_its_own() -> None:
    assert offsets(choice("ab", ["a", "b"]), choice("cd", ["cd"], 1)) == [[0, 1], [0]]


def event(*choices: dict[str, Any]) -> dict[str, Any]:
    return {"choices": list(choices)}


def test_a_stream_counts_from_the_beginning_of_its_text() -> None:
    edits = edits_for({**LOGPROBS, "n": 2})
    # The text of a token may come later than its logprob.
    events = [
        event(choice("Hello a", ["Hello", " a"]), choice("b", ["b"], 1)),
        event(choice("", ["c"])),
        event(choice("c d", [" d"])),
    ]
    messages = [edited(item, edits) for item in events]
    found = [item["logprobs"]["text_offset"] for message in messages for item in message["choices"]]
    assert found == [[0, 5], [0], [7], [8]]


CALLS = [{"index": index, "id": str(index), "function": {"name": "f"}} for index in range(2)]
ONE_CALL = {"messages": [], "tools": [{"type": "function"}], "parallel_tool_calls": False}


def test_without_parallel_calls_the_first_stays_alone() -> None:
    whole = event({"message": {"tool_calls": CALLS}}, {"message": {"content": "a"}})
    first, second = edited(whole, edits_for(ONE_CALL))["choices"]
    assert first["message"]["tool_calls"] == CALLS[:1]
    assert second["message"] == {"content": "a"}
    streamed = event(*({"delta": {"tool_calls": [call]}} for call in CALLS))
    deltas = edited(streamed, edits_for(ONE_CALL))["choices"]
    assert [item["delta"]["tool_calls"] for item in deltas] == [CALLS[:1], None]


@pytest.mark.parametrize(
    "body", [{"prompt": "a"}, {"messages": [], "logprobs": True}, {**ONE_CALL, "parallel_tool_calls": True}]
)
def test_other_answers_pass_as_they_are(body: dict[str, Any]) -> None:
    message = {"choices": [{"text": " ", "logprobs": {"text_offset": [-1]}}]}
    assert edited(message, edits_for(body)) == message


def test_versions_of_the_weights_are_not_told() -> None:
    told = {"choices": [], "metadata": {"weight_version": "default", "weight_versions": [{"start": 0}]}}
    assert edited(told, edits_for({"prompt": "Hello"})) == {"choices": []}


@pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "function": {"name": "f"}}, "auto", None])
def test_required_calls_have_no_white_space_beside_them(tool_choice: Any) -> None:
    edits = edits_for({"tools": [{}], "tool_choice": tool_choice})
    seen = [edited(event({"delta": {"content": text}}), edits) for text in (" \n ", " a")]
    said = [message["choices"][0]["delta"]["content"] for message in seen]
    assert said == [" \n " if tool_choice in ("auto", None) else None, " a"]
