"""usage.sparktier: sums over choices, told once, in the place where OpenAI's clients look, and nothing else changed."""

import json
from typing import Any

import pytest

from sparktier.serving.gateway.usage import UsageStream, asked, asking, in_answer

FIRST = {"spec_verify_ct": 3, "spec_num_correct_drafts": 6, "spec_cap_lens_histogram": [0, 0, 0, 0, 3]}
SECOND = {"spec_verify_ct": 1, "spec_num_correct_drafts": 0, "spec_cap_lens_histogram": [0, 1]}
BOTH = {"tier": "gold", "accepted_length": 2.5, "rounds": 4, "rows_verified": 13}


def event(message: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(message, separators=(",", ":")).encode() + b"\n\n"


def ignored(tokens: int) -> None:
    """What a request costs its tenant is not looked at."""


def messages(events: bytes) -> list[dict[str, Any]]:
    return [json.loads(item.removeprefix(b"data: ")) for item in events.split(b"\n\n") if item]


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
    found = json.loads(in_answer(json.dumps(answer).encode(), tier="gold", count=ignored))
    found.setdefault("sglext", None)
    assert found == {**answer, "usage": {"total_tokens": 9, "sparktier": expected}, "sglext": None}


def test_what_else_the_engine_adds_stays() -> None:
    answer = {"usage": {}, "sglext": {"spec_tokens_details": FIRST, "cached_tokens_details": {"device": 3}}}
    found = json.loads(in_answer(json.dumps(answer).encode(), tier="gold", count=ignored))
    assert found["sglext"] == {"cached_tokens_details": {"device": 3}}


TOKEN = event({"choices": [{"delta": {"content": 'says "sglext":{} and "usage":{}'}}], "usage": None})
TOLD = event({"choices": [], "sglext": {"spec_tokens_details": [FIRST, SECOND]}})
USAGE = event({"choices": [], "usage": {"total_tokens": 9}})
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "parts", [[TOKEN, TOLD, USAGE, DONE], [TOKEN, TOLD + USAGE + DONE], [TOKEN + TOLD, USAGE + DONE]]
)
def test_a_stream_has_it_in_its_last_usage_however_it_is_cut(parts: list[bytes]) -> None:
    stream = UsageStream(tier="gold", count=ignored, hidden=False)
    sent = b"".join(map(stream.events, parts))
    assert sent.startswith(TOKEN)
    assert sent.endswith(DONE)
    [found] = messages(sent.removeprefix(TOKEN).removesuffix(DONE))
    assert found == {"choices": [], "usage": {"total_tokens": 9, "sparktier": BOTH}}


def test_a_stream_without_usage_is_what_it_would_have_been() -> None:
    stream = UsageStream(tier="gold", count=ignored, hidden=False)
    assert b"".join(map(stream.events, [TOKEN, TOKEN, TOLD, DONE])) == TOKEN + TOKEN + DONE


def test_usage_of_each_chunk_stays_as_it_is() -> None:
    running = event({"choices": [{"delta": {}}], "usage": {"total_tokens": 3}})
    assert UsageStream(tier="gold", count=ignored, hidden=False).events(running) == running


@pytest.mark.parametrize("hidden", [False, True])
def test_the_tokens_of_a_stream_are_told_and_shown_to_those_who_asked(hidden: bool) -> None:
    tokens: list[int] = []
    stream = UsageStream(tier="gold", count=tokens.append, hidden=hidden)
    sent = b"".join(map(stream.events, [TOKEN, TOLD, USAGE + DONE]))
    assert tokens == [9]
    assert (sent == TOKEN + DONE) is hidden


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({}, False),
        ({"stream": True}, False),
        ({"stream": True, "stream_options": {"include_usage": False, "other": 1}}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True),
    ],
)
def test_a_stream_is_asked_for_its_tokens_where_they_are_limited(body: dict[str, Any], shown: bool) -> None:
    assert asked(body) is shown
    sent = asking(body, tokens=True)
    assert ("stream_options" in sent) is ("stream" in body)
    if "stream" in body:
        assert sent["stream_options"] == {**body.get("stream_options", {}), "include_usage": True}
    assert asking(body).get("stream_options") == body.get("stream_options")


def test_the_tokens_of_an_answer_are_told() -> None:
    tokens: list[int] = []
    in_answer(b'{"usage": {"total_tokens": 9}}', tier="gold", count=tokens.append)
    assert tokens == [9]
