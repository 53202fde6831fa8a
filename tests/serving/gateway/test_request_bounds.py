"""How much work one request may be: its text, its schemas, its numbers, its lists and objects."""

import json
from typing import Any

import pytest
from pydantic_core import to_json

from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests import values as request_values
from sparktier.serving.gateway.requests.body import json_object
from sparktier.serving.gateway.requests.rules import checked

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LIMITS = EngineLimits(vocab_size=512, context_tokens=256, token_characters=5, calls_tools=True)
WIDE = EngineLimits(vocab_size=512, context_tokens=1 << 17, token_characters=16, calls_tools=True)
ASKED = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def check(path: str, limits: EngineLimits = LIMITS, **fields: Any) -> dict[str, Any]:
    defaults = {"prompt": "Hello"} if path == COMPLETIONS else {"messages": ASKED}
    return checked(path, {**defaults, **fields}, model="tiny", limits=limits)


def refusal(path: str, limits: EngineLimits = LIMITS, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        check(path, limits, **fields)
    return caught.value


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


LONG = "a" * 5200


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "a", "name": LONG}]},
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": LONG}, *ASKED]},
        {"messages": [{"role": "assistant", "reasoning_content": LONG}, *ASKED]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": LONG}}]}, *ASKED]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {LONG: 1}}}]}]},
        {"messages": [{"role": "system", "tools": [{"function": {"name": "f", "description": LONG}}]}, *ASKED]},
        {"messages": [{"role": "user", "content": "a"}] * 600},
        {"tools": [{"function": {"name": LONG}}]},
        {"tools": [{"function": {"name": "f", "description": LONG}}]},
        {"tools": [{"function": {"name": "f", "parameters": {"enum": [10**12 + item for item in range(500)]}}}]},
        {"tools": [TOOL | {"more": LONG}]},
        {"chat_template_kwargs": {"a": LONG}},
        {"chat_template_kwargs": {LONG: True}},
        {"chat_template_kwargs": {"a": [{"b": "a" * 2000}] * 3}},
        {"tool_choice": {"type": "function", "function": {"name": LONG}}},
        {"reasoning": {"effort": LONG}},
    ],
)
def test_all_text_that_reaches_the_template_is_bounded_together(fields: dict[str, Any]) -> None:
    assert "at most 5120 characters together" in str(refusal(CHAT, **fields))


def test_parts_that_fit_alone_may_not_fit_together() -> None:
    half = "a" * 2500
    parts: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": half}]},
        {"tools": [{"function": {"name": "f", "description": half}}]},
        {"chat_template_kwargs": {"a": half}},
    ]
    for part in parts:
        assert check(CHAT, **part)
    assert check(CHAT, **parts[0], **parts[1])
    assert "together" in str(refusal(CHAT, **parts[0], **parts[1], **parts[2]))
    assert "together" in str(refusal(COMPLETIONS, prompt=[half] * 3))
    assert check(COMPLETIONS, prompt=[half] * 2)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


WRONG_SCHEMAS = [
    ({"type": "object", "properties": {f"p{item}": {"pattern": "a" * 90} for item in range(1000)}}, "65536 bytes"),
    ({"enum": ["a" * (64 << 10)]}, "65536 bytes"),
    ({"properties": {f"{item}": {} for item in range(2048)}}, "2048 lists and objects"),
    ({"anyOf": [[]] * 2048}, "2048 lists and objects"),
    (nested(100), "64 lists and objects deep"),
    ({"items": {"pattern": "a" * 4097}}, "one in items must have at most 4096 characters"),
    ({"properties": {"a": {"pattern": "[^a]*" * 129}}}, "one in properties.a must have at most 128 of the characters"),
    ({"patternProperties": {"[^a]*" * 129: {}}}, "one in the schema must have at most 128 of the characters"),
    ({"anyOf": [{"pattern": "a" * 4000}] * 5}, "patterns of at most 16384 characters together"),
]


@pytest.mark.parametrize(("schema", "words"), WRONG_SCHEMAS)
def test_schemas_are_bounded_wherever_they_come(schema: dict[str, Any], words: str) -> None:
    tool = {"function": {"name": "f", "parameters": schema}}
    places: list[tuple[str, dict[str, Any], str]] = [
        (CHAT, {"response_format": form(schema)}, "schema"),
        (COMPLETIONS, {"response_format": form(schema)}, "schema"),
        (CHAT, {"tools": [TOOL, tool]}, "tools.1.function.parameters"),
        (CHAT, {"messages": [{"role": "system", "tools": [tool]}, *ASKED]}, "messages.0.tools.0.function.parameters"),
    ]
    for path, fields, param in places:
        error = refusal(path, WIDE, **fields)
        assert words in str(error)
        assert str(error.param).endswith(param)
    if len(json.dumps(schema)) < 64 << 10:
        assert words in str(refusal(COMPLETIONS, json_schema=json.dumps(schema)))


def test_schemas_of_tools_are_bounded_together() -> None:
    tool = {"function": {"name": "f", "parameters": {"properties": {f"{item}": {} for item in range(40)}}}}
    fields = {"messages": [{"role": "system", "tools": [tool] * 20}, *ASKED], "tools": [tool] * 30}
    words = "parameters of tools must have at most 2048 lists and objects together"
    assert words in str(refusal(CHAT, WIDE, **fields))
    assert check(CHAT, WIDE, **fields | {"tools": [tool] * 20})


def test_schemas_that_people_use_pass() -> None:
    properties = {f"property_{item}": {"type": "string", "description": "what it is"} for item in range(500)}
    schema = {"type": "object", "properties": {"a": {"items": nested(40)}, **properties}, "required": [*properties]}
    tools = [{"function": {"name": f"f{item}", "parameters": nested(5)}} for item in range(128)]
    assert check(CHAT, WIDE, response_format=form(schema), tools=tools)
    assert check(COMPLETIONS, json_schema=json.dumps(schema))


@pytest.mark.parametrize(
    ("name", "grammar", "words"),
    [
        ("regex", "a" * 4097, "regex: must have at most 4096 characters"),
        ("regex", "(a|" * 1500 + "b" + ")" * 1500, "regex: must have at most 4096 characters"),
        ("regex", "[^a]*" * 129, "regex: must have at most 128 of the characters * + ? {"),
        ("ebnf", "root ::= " + "[^a]* " * 257, "ebnf: must have at most 256 of the characters * + ? {"),
        ("ebnf", "root ::= " + "a " * (32 << 10), "ebnf: must have at most 65536 characters"),
    ],
)
def test_grammars_that_take_long_to_compile_are_refused(name: str, grammar: str, words: str) -> None:
    assert words in str(refusal(COMPLETIONS, **{name: grammar}))
    assert check(COMPLETIONS, **{name: "root ::= [a-z]* | (a+ b?){2}"})


@pytest.mark.parametrize("text", ["{", "[]", '{"maximum": 1e999}', '{"a": 1, "a": 2}', "9" * 5000])
def test_a_schema_as_text_must_be_one(text: str) -> None:
    error = refusal(COMPLETIONS, json_schema=text)
    assert error.param == "json_schema"
    assert "must hold a JSON schema" in str(error)


@pytest.mark.parametrize(
    ("raw", "param", "words"),
    [
        ('{"a":1e999}', "a", "infinite"),
        ('{"a":{"b":[0,{"c":-1e999}]}}', "a.b.1.c", "infinite"),
        ('{"messages":[{"content":"a","x":1e400}]}', "messages.0.x", "infinite"),
        ('{"a":[1,2,18446744073709551616]}', "a.2", "64 bits"),
        ('{"a":{"seed":-9223372036854775809}}', "a.seed", "64 bits"),
        ('{"a":1,"b":2,"a":3}', "a", "must be given once"),
        ('{"a":[{},{"b":{"c":1,"c":1}}]}', "a.1.b.c", "must be given once"),
    ],
)
def test_a_value_that_no_engine_can_take_is_named(raw: str, param: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        json_object("application/json", raw.encode())
    assert (caught.value.status, caught.value.param) == (400, param)
    assert str(caught.value).startswith(param)


def test_a_body_has_so_many_lists_and_objects_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_values, "MAX_CONTAINERS", 12)
    assert json_object("application/json", b'{"a":[%b]}' % b",".join([b"[1]"] * 10))
    with pytest.raises(Refused, match="at most 12 lists and objects"):
        json_object("application/json", b'{"a":[%b]}' % b",".join([b'{"a":{}}'] * 6))
    assert json_object("application/json", to_json({"a": '[{"' * 20, "b\\": "\\"}))


@pytest.mark.parametrize("raw", [b'{"' + b'\\"' * 500_000, b'{"' + b'\\"[' * 500_000 + b"\\", b'"[' * 900_000])
def test_strings_that_never_end_are_no_more_work_than_others(raw: bytes) -> None:
    with pytest.raises(Refused):
        json_object("application/json", raw)


def test_large_numbers_of_64_bits_pass() -> None:
    found = {"a": [2**64 - 1, -(2**63), 1e308, -1e308, True, None], "b": 2**63, "c": [1, 2]}
    assert json_object("application/json", to_json(found)) == found
