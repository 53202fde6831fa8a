"""What SGLang says of a failure, as OpenAI's clients expect it and without SGLang's insides."""

import json

import pytest

from sparktier.configs.errors import REQUEST_ENDED
from sparktier.serving.gateway import engine_errors
from sparktier.serving.gateway.core.events import Restatement
from sparktier.serving.gateway.http import openai_errors
from sparktier.serving.gateway.refused import Refused

# As SGLang 0.5.23 sent them.
SCHEMA = (
    "1 validation error:\n  {'type': 'int_parsing_size', 'loc': ('body', 'seed'), 'msg': 'Unable to parse input string "
    "as an integer, exceeded maximum size', 'input': 1.18e+21}\n\n  File \"/opt/env/lib/http_server.py\", line 1, in f"
)
ROLE = (
    "3 validation errors:\n  {'type': 'value_error', 'loc': ('body', 'messages', 0, 'function-after[validate_thinking("
    "), ChatParam]', 'role'), 'msg': \"Value error, 'role' must be one of 'system'\", 'input': None}"
)
GRAMMAR = (
    'Failed to compile json grammar: [02:16:31] /project/cpp/json_schema_converter.cc:4175: Unsupported "banana"\n'
)
METASCHEMA = "Tool 0 function has invalid 'parameters' schema: 'banana' is not valid\n\nFailed validating 'anyOf' in x"


FLAG = "top_p is wrong. Please relaunch with --allow-auto-truncate, or set SGLANG_X=1. Use a smaller one."


def from_engine(status: int, content: bytes, **asked: object) -> Refused:
    return engine_errors.from_engine(status, content, asked=asked)


def body_of(error: Refused) -> dict[str, object]:
    body: dict[str, object] = openai_errors.body(error)["error"]
    return body


def said(message: str) -> bytes:
    return json.dumps({"object": "error", "message": message, "code": 400}).encode()


@pytest.mark.parametrize(
    ("sentence", "told", "param", "code"),
    [
        (SCHEMA, "seed: Unable to parse input string as an integer, exceeded maximum size", "seed", "invalid_value"),
        (ROLE, "messages.0.role: Value error, 'role' must be one of 'system'", "messages.0.role", "invalid_value"),
        (GRAMMAR, 'Failed to compile json grammar: Unsupported "banana"', None, "invalid_grammar"),
        (
            METASCHEMA,
            "Tool 0 function has invalid 'parameters' schema: 'banana' is not valid",
            "tools",
            "invalid_function_parameters",
        ),
        ("Tool 'f' not found in tools list.", "Tool 'f' not found in tools list.", "tool_choice", "invalid_value"),
        ("No file at /opt/models/tiny/config.json here", "No file at ... here", None, "invalid_request"),
        ("top_p must be in (0, 1], got 1.5.", "top_p must be in (0, 1], got 1.5.", None, "invalid_request"),
        ("See https://example.com/a/b for more", "See https://example.com/a/b for more", None, "invalid_request"),
        (FLAG, "top_p is wrong. Use a smaller one.", None, "invalid_request"),
        (
            "Start the server with --trust-it to permit it.",
            "The engine refused this request (400).",
            None,
            "invalid_request",
        ),
        ("a -- b and well-known words", "a -- b and well-known words", None, "invalid_request"),
    ],
)
def test_messages_lose_what_is_for_operators_and_gain_a_code(
    sentence: str, told: str, param: str | None, code: str
) -> None:
    assert body_of(from_engine(400, said(sentence))) == {
        "message": told,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


DEAD_END = REQUEST_ENDED + "its grammar allows no token after 3 tokens, and no end."
BROKEN = REQUEST_ENDED + "the model's logits are not finite after 3 tokens."


@pytest.mark.parametrize(
    ("asked", "said", "param", "told"),
    [
        ({"ebnf": "x"}, DEAD_END, "ebnf", "ebnf: its grammar allows no token after 3 tokens, and no end."),
        ({"response_format": {}}, GRAMMAR, "response_format", 'response_format: Unsupported "banana"'),
        ({"json_schema": "x"}, GRAMMAR, "json_schema", 'json_schema: Unsupported "banana"'),
        ({"regex": "x"}, "top_p must be in (0, 1].", None, "top_p must be in (0, 1]."),
    ],
)
def test_a_grammar_at_fault_is_named_by_the_field_it_came_in(
    asked: dict[str, object], said: str, param: str | None, told: str
) -> None:
    plain = engine_errors.from_engine(400, json.dumps({"message": said, "code": 400}).encode(), asked=asked)
    streamed = engine_errors.in_event({"error": {"message": said, "code": 400}}, asked=asked)
    assert streamed is not None
    for answer in (plain, streamed):
        error = body_of(answer)
        assert answer.status == 400
        assert (error["param"], error["message"]) == (param, told)


def test_a_request_that_was_ended_alone_is_told_why() -> None:
    answer = from_engine(500, json.dumps({"detail": BROKEN}).encode())
    assert (answer.status, str(answer), answer.code) == (500, BROKEN, "request_ended")


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        (
            "Requested token count exceeds the model's maximum context length of 512 tokens. You requested a total of "
            "519 tokens: 7 tokens from the input messages and 512 tokens for the completion. Please reduce it.",
            "This model's maximum context length is 512 tokens. However, you requested 519 tokens (7 in the messages, "
            "512 in the completion). Please reduce the length of the messages or the completion.",
        ),
        (
            "The input (601 tokens) is longer than the model's context length (512 tokens).",
            "This model's maximum context length is 512 tokens. However, your messages resulted in 601 tokens. "
            "Please reduce the length of the messages.",
        ),
        (
            "Input length (2043 tokens) exceeds the maximum allowed length (2042 tokens). Use a shorter input or "
            "enable --allow-auto-truncate.",
            "This model's maximum context length is 2042 tokens. However, your messages resulted in 2043 tokens. "
            "Please reduce the length of the messages.",
        ),
    ],
    ids=["both", "prompt", "rank"],
)
def test_what_exceeds_the_context_is_said_as_openai_says_it(sentence: str, told: str) -> None:
    whole = body_of(from_engine(400, said(sentence), messages=[]))
    streamed = engine_errors.in_event({"error": json.loads(said(sentence))}, asked={"messages": []})
    assert streamed is not None
    assert body_of(streamed) == whole
    assert whole == {
        "message": told,
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }


@pytest.mark.parametrize(
    "content", [b"", b"Internal Server Error", b"[]", b'{"detail": [{"loc": ["a"]}]}', b'{"message": null}', b"\xff"]
)
def test_anything_else_still_becomes_an_error(content: bytes) -> None:
    assert str(from_engine(422, content)) == "The engine refused this request (422)."


def test_a_failure_of_the_engine_tells_nothing_of_it() -> None:
    answer = from_engine(500, b'{"message": "Internal server error: KeyError(\'tokenize\')"}')
    assert answer.status == 500
    assert body_of(answer)["type"] == "server_error"
    assert "KeyError" not in str(answer)


OPENING = {
    "error": {
        "object": "error",
        "message": "Failed: [02:16:30] /a/b.cc:8: not closed.",
        "type": "BAD_REQUEST",
        "param": None,
        "code": 400,
    }
}


def test_a_stream_that_opens_with_an_error_is_a_plain_refusal() -> None:
    answer = engine_errors.in_event(OPENING, asked={})
    assert answer is not None
    assert (answer.status, str(answer)) == (400, "Failed: not closed.")
    assert engine_errors.in_event({"id": "a"}, asked={}) is None
    assert engine_errors.in_event({"error": None}, asked={}) is None


def test_an_error_inside_a_stream_is_restated_and_ends_it() -> None:
    restated = Restatement({}, tier="gold")
    token = {"id": "a", "choices": [{"text": '"error"'}]}
    assert restated.events([token, OPENING, token]) == [token]
    assert restated.refused is not None
    data = openai_errors.event(restated.refused)
    assert data.endswith(b"\n\n")
    assert json.loads(data.removeprefix(b"data: "))["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("status", "kind", "headers"),
    [
        (400, "invalid_request_error", {}),
        (401, "invalid_request_error", {"WWW-Authenticate": "Bearer"}),
        (429, "rate_limit_error", {"Retry-After": "7"}),
        (503, "server_error", {"Retry-After": "7"}),
    ],
)
def test_a_refusal_has_openai_s_type_and_the_headers_of_its_status(
    status: int, kind: str, headers: dict[str, str]
) -> None:
    error = Refused("No.", status=status, retry_after_s=7 if "Retry-After" in headers else None)
    assert body_of(error)["type"] == kind
    assert openai_errors.headers(error) == headers
