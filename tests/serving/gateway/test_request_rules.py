"""What the front lets through to an engine, what it refuses, and in which words."""

import ast
import dataclasses
import gzip
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import ValidationError
from pydantic_core import to_json

from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.engine.upstream.source import installed_root
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests.body import json_object
from sparktier.serving.gateway.requests.fields import MAX_CHOICES
from sparktier.serving.gateway.requests.rules import DROPPED, LABELS, REFUSED, checked, fields_of
from sparktier.serving.gateway.requests.schema import Chat, Completion
from sparktier.serving.gateway.requests.values import BadValue
from support.inputs.field_effects import EFFECTS, ELSEWHERE

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LIMITS = EngineLimits(
    vocab_size=512, context_tokens=256, token_characters=5, calls_tools=True, template_reads=frozenset({"messages"})
)
ASKED = [{"role": "user", "content": "Hello"}]
TEXT = {"type": "text", "text": "Hello"}
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


def check(path: str, *, limits: EngineLimits = LIMITS, **fields: Any) -> dict[str, Any]:
    defaults = {"prompt": "Hello"} if path == COMPLETIONS else {"messages": ASKED}
    return checked(path, {**defaults, **fields}, model="tiny", limits=limits)


def refusal(path: str, *, limits: EngineLimits = LIMITS, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        check(path, limits=limits, **fields)
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": "tiny"},
        {"prompt": ["a", "b"]},
        {"prompt": [1, 511]},
        {"prompt": [[1], [2, 3]]},
        {"n": MAX_CHOICES},
        {"prompt": ["a"] * 64, "n": 2},
        {"stop": "x"},
        {"stop": ["x", "y"]},
        {"stop_token_ids": [0]},
        {"logit_bias": {"0": -100, "511": 100.0}},
        {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0},
        {"temperature": 2, "top_p": 0.1, "top_k": 1, "min_p": 1.0},
        {"seed": -(2**63)},
        {"max_tokens": 256, "min_tokens": 256},
        {"max_tokens": 10.0, "min_tokens": 3.0, "n": 2.0, "best_of": 2.0, "top_k": 5.0, "seed": 7.0, "logprobs": 1.0},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"logprobs": 0},
        {"n": 3, "best_of": 3},
        {"regex": "a+"},
        {"response_format": SCHEMA},
        {"response_format": {"type": "text"}, "regex": "a"},
        {"metadata": {"a": 1}, "user": "a"},
        {"temperature": None, "n": None, "lora_path": None, "return_hidden_states": False},
    ],
)
def test_what_clients_ask_for_passes(fields: dict[str, Any]) -> None:
    sent = {name: value for name, value in fields.items() if value is not None}
    assert check(COMPLETIONS, **fields) == {"prompt": "Hello", "model": "tiny", **sent}


@pytest.mark.parametrize(
    "fields",
    [
        {
            "messages": [
                {"role": "system", "content": "a"},
                {"role": "user", "content": [{"type": "text", "text": "b"}]},
            ]
        },
        {"messages": [*ASKED, {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "", "name": "f"}]},
        {"logprobs": True, "top_logprobs": 20},
        {"max_completion_tokens": 5, "min_tokens": 5},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_what_chats_ask_for_passes(fields: dict[str, Any]) -> None:
    assert check(CHAT, **fields) == {"messages": ASKED, "model": "tiny", **fields}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"n": 0}, "n", "n: must be greater than or equal to 1 (found 0)."),
        ({"n": -3}, "n", "n: must be greater than or equal to 1 (found -3)."),
        ({"n": 100_000}, "n", "n: must be less than or equal to 128 (found 100000)."),
        ({"n": True}, "n", "n: must be a valid integer (found true)."),
        ({"n": "2"}, "n", 'n: must be a valid integer (found "2").'),
        ({"prompt": ["a"] * 65, "n": 2}, None, "n times the number of prompts must be at most 128."),
        ({"prompt": []}, "prompt", "prompt: must have at least 1 item (found a list of 0)."),
        ({"prompt": ["a", ""]}, "prompt.1", 'prompt.1: must have at least 1 character (found "").'),
        ({"prompt": [[1], []]}, "prompt.1", "prompt.1: must have at least 1 item (found a list of 0)."),
        ({"prompt": [-1]}, "prompt.0", "prompt.0: must be greater than or equal to 0 (found -1)."),
        ({"prompt": [1, "a"]}, "prompt.1", 'prompt.1: must be a valid integer (found "a").'),
        ({"best_of": -1}, None, "best_of must equal n: every choice that is generated is returned."),
        ({"logprobs": -1}, "logprobs", "logprobs: must be greater than or equal to 0 (found -1)."),
        ({"logprobs": 5000}, "logprobs", "logprobs: must be less than or equal to 20 (found 5000)."),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: must be greater than or equal to 1 (found 0)."),
        ({"min_tokens": 9, "max_tokens": 5}, None, "min_tokens must be at most max_tokens, here 5."),
        (
            {"min_tokens": 5, "max_tokens": 9, "stop": ["x"]},
            None,
            "stop must not come with min_tokens, which bars stop tokens alone: use stop_token_ids.",
        ),
        ({"min_tokens": 17}, None, "min_tokens must be at most max_tokens, here 16."),
        ({"temperature": -1}, "temperature", "temperature: must be greater than or equal to 0 (found -1)."),
        ({"temperature": 10**400}, "temperature", None),
        ({"top_p": 0}, "top_p", "top_p: must be greater than 0 (found 0)."),
        ({"top_p": 1e-300}, "top_p", "top_p: must be at least 1e-30 (found 1e-300)."),
        ({"repetition_penalty": 1e-300}, "repetition_penalty", None),
        ({"max_tokens": 10.5}, "max_tokens", "max_tokens: must be a valid integer (found 10.5)."),
        ({"cache_salt": "a" * 257}, "cache_salt", None),
        ({"top_k": 0}, "top_k", "top_k: must be -1 (all tokens) or at least 1 (found 0)."),
        ({"seed": 2**63}, "seed", None),
        ({"stop": ""}, "stop.0", 'stop.0: must have at least 1 character (found "").'),
        ({"stop": ["x"] * 33}, "stop", "stop: must have at most 32 items (found a list of 33)."),
        ({"logit_bias": {"a": 1}}, "logit_bias", "logit_bias: must have token ids as keys (found an object)."),
        ({"logit_bias": {"1": 1e9}}, "logit_bias.1", None),
        ({"stream_options": {}}, None, "stream_options must come with stream: true."),
        ({"echo": True, "logprobs": 0}, None, None),
        ({"regex": "a", "json_schema": "{}"}, None, None),
        ({"regex": "a", "response_format": SCHEMA}, None, None),
        ({"response_format": {"type": "json_schema"}}, "response_format", None),
        ({"lora_path": "x"}, "lora_path", "lora_path: LoRA adapters are not served. Leave it out."),
        ({"routed_dp_rank": 0}, "routed_dp_rank", None),
        ({"model": 5}, "model", "model: must be a string (found 5)."),
    ],
)
def test_a_refusal_names_the_field_the_rule_and_the_value(
    fields: dict[str, Any], param: str | None, message: str | None
) -> None:
    error = refusal(COMPLETIONS, **fields)
    assert error.status == 400
    assert error.param == param
    assert message is None or str(error) == message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages.0"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"top_logprobs": 3}, None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"tools": [{}]}, "tools.0.function"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"messages": [*ASKED, {"role": "system", "content": "a", "tools": [TOOL] * 129}]}, "messages.1.tools"),
        ({"messages": [{"role": "system", "tools": [TOOL] * 128}, *ASKED], "tools": [TOOL]}, None),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
        ({"input_ids": [1]}, "input_ids"),
    ],
)
def test_a_wrong_chat_is_refused(fields: dict[str, Any], param: str | None) -> None:
    assert refusal(CHAT, **fields).param == param


def test_bounds_come_from_the_model_that_is_served() -> None:
    assert "below 512" in str(refusal(COMPLETIONS, prompt=[512]))
    assert "at most 256" in str(refusal(COMPLETIONS, max_tokens=257))
    assert "at most 5120 characters" in str(refusal(COMPLETIONS, prompt=["a", "a" * 5121]))
    long = {"role": "user", "content": [TEXT | {"text": "a" * 2000}]}
    assert "at most 5120 characters together" in str(refusal(CHAT, messages=[long, long, long]))
    assert check(CHAT, messages=[long, long])
    larger = EngineLimits(vocab_size=513, context_tokens=257, token_characters=6)
    assert checked(COMPLETIONS, {"prompt": [512], "max_tokens": 256}, model="tiny", limits=larger)


@pytest.mark.parametrize("call", [{"name": "f", "arguments": " "}, {"name": "f", "arguments": None}, {"name": "f"}])
def test_calls_without_arguments_have_none(call: dict[str, Any]) -> None:
    def with_call(call: dict[str, Any]) -> list[dict[str, Any]]:
        calls = [{"id": "a", "type": "function", "function": call}]
        return [*ASKED, {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "b"}]

    assert check(CHAT, messages=with_call(call))["messages"] == with_call({"name": "f", "arguments": "{}"})
    given = with_call({"name": "f", "arguments": '{"a": 1}'})
    assert check(CHAT, messages=given)["messages"] == given


def test_another_model_is_not_found_as_openai_says_it() -> None:
    error = refusal(CHAT, model="gpt-4")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_what_only_we_may_set_is_dropped() -> None:
    assert check(CHAT, custom_params={"tier": 0}) == {"messages": ASKED, "model": "tiny"}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":[' + b"1," * 2_000_000 + b"1]}",
        b'{"prompt":[' + b"-1," * 1_300_000 + b"1]}",
        b'{"prompt":[' + b"[]," * 1_300_000 + b"[]]}",
        b'{"prompt":"a","stop":[' + b"1," * 1_900_000 + b"1]}",
        b'{"prompt":"a","logit_bias":{' + b",".join(b'"%d":"x"' % key for key in range(300_000)) + b"}}",
    ],
    ids=["messages", "ids", "prompts", "stops", "biases"],
)
def test_a_body_full_of_errors_costs_no_more_than_one(raw: bytes) -> None:
    """An error for each of a million items took 30 s and 3 GB, in the loop that serves everybody."""

    def refused() -> None:
        body = json_object("application/json", raw)
        checked(CHAT if "messages" in body else COMPLETIONS, body, model="tiny", limits=LIMITS)

    with pytest.raises(Refused) as caught:
        refused()
    cause = caught.value.__cause__
    assert isinstance(cause, BadValue) or (isinstance(cause, ValidationError) and cause.error_count() <= 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(sorted({*Completion.model_fields, *Chat.model_fields, *REFUSED, *DROPPED}))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([COMPLETIONS, CHAT]), st.dictionaries(FIELDS, JSON, max_size=5))
def test_any_object_is_passed_on_or_refused_in_plain_words(path: str, fields: dict[str, Any]) -> None:
    refused, kept = None, {}
    try:
        kept = check(path, **fields)
    except Refused as error:
        refused = error
    assert json.loads(to_json(kept)) == kept
    assert not REFUSED.keys() & {name for name, value in kept.items() if value is not False}
    if refused is not None:
        rule = str(refused).split(" (found")[0]
        assert refused.status in (400, 404)
        assert len(str(refused)) < 1500
        assert not re.search(r"pydantic|Traceback|\bNone\b|\bTrue\b|\bFalse\b|<class|\w+\(", rule)


SGLANG_CLASSES = {COMPLETIONS: "CompletionRequest", CHAT: "ChatCompletionRequest"}


def fields_of_sglang(path: str) -> set[str]:
    """Every field that SGLang's own request class reads, from its source; `reasoning` is read before all of them."""
    root = installed_root()
    assert root is not None
    tree = ast.parse((root / "sglang/srt/entrypoints/openai/protocol.py").read_text())
    found = {
        item.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in ("PDRoutingFields", SGLANG_CLASSES[path])
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith("_")
    }
    assert "model" in found
    return found | ({"reasoning"} if path == CHAT else set())


def fields_of_openai(path: str) -> set[str]:
    """Every field that OpenAI's client knows."""
    module = chat_params if path == CHAT else completion_params
    return {
        *module.CompletionCreateParamsNonStreaming.__annotations__,
        *module.CompletionCreateParamsBase.__annotations__,
    }


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_every_field_of_sglang_and_openai_has_been_judged(path: str) -> None:
    assert fields_of_sglang(path) | fields_of_openai(path) <= fields_of(path)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_every_accepted_field_has_an_effect_or_is_a_label(path: str) -> None:
    """tests/end_to_end/test_field_effects.py sees each effect."""
    accepted = fields_of(path) - REFUSED.keys() - LABELS - DROPPED - ELSEWHERE.keys()
    assert accepted == EFFECTS[path].keys()
    # What is accepted is also read: by the engine, or here.
    assert accepted <= fields_of_sglang(path)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_field_that_would_do_nothing_is_refused_by_its_name(path: str, name: str) -> None:
    for value in (1, "a", True, {"a": 1}):
        error = refusal(path, **{name: value})
        assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")


def test_what_happens_anyway_may_be_asked_for() -> None:
    granted = {"modalities": ["text"], "verbosity": "medium", "store": False}
    assert check(CHAT, **granted) == {"messages": ASKED, "model": "tiny", **granted}


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (CHAT, {"json_schema": "{}"}, "json_schema: /v1/chat/completions has no such field; use response_format."),
        (CHAT, {"echo": True}, "echo: /v1/chat/completions has no such field; leave it out."),
        (CHAT, {"max_token": 5}, "max_token: /v1/chat/completions has no such field; did you mean max_tokens?"),
        (COMPLETIONS, {"max_completion_tokens": 5}, None),
        (COMPLETIONS, {"tools": []}, None),
        (COMPLETIONS, {"x" * 9999: 5}, f"{'x' * 60}: /v1/completions has no such field; leave it out."),
    ],
)
def test_a_field_that_is_read_by_none_is_refused(path: str, fields: dict[str, Any], message: str | None) -> None:
    error = refusal(path, **fields)
    assert (error.status, error.code) == (400, "unknown_parameter")
    assert error.param == next(iter(fields))[:60]
    assert message is None or str(error) == message


TOOLS = [{"type": "function", "function": {"name": "f"}}]
NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("choice", ["auto", "required", NAMED, None])
def test_tools_are_refused_where_no_call_of_one_could_be_read(choice: object) -> None:
    dumb = dataclasses.replace(LIMITS, calls_tools=False)
    error = refusal(CHAT, tools=TOOLS, tool_choice=choice, limits=dumb)
    assert (error.status, error.param, error.code) == (400, "tools", "unsupported_parameter")
    assert check(CHAT, tools=TOOLS, tool_choice=choice)
    assert check(CHAT, tools=TOOLS, tool_choice="none", limits=dumb)
    assert check(CHAT, tools=[], limits=dumb)


@pytest.mark.parametrize(
    ("fields", "param", "reads"),
    [
        ({"reasoning_effort": "high"}, "reasoning_effort", "reasoning_effort"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "enable_thinking"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "thinking"),
        ({"reasoning": {"enabled": True}}, "reasoning", "thinking"),
        (
            {"chat_template_kwargs": {"enable_thinking": True}},
            "chat_template_kwargs.enable_thinking",
            "enable_thinking",
        ),
        ({"chat_template_kwargs": {"style": "a"}}, "chat_template_kwargs.style", "style"),
    ],
)
def test_what_the_chat_template_does_not_read_is_refused(fields: dict[str, Any], param: str, reads: str) -> None:
    error = refusal(CHAT, **fields)
    assert (error.status, error.param, error.code) == (400, param, "unsupported_parameter")
    for names in (frozenset({"messages", reads}), None):
        assert check(CHAT, limits=dataclasses.replace(LIMITS, template_reads=names), **fields)


def test_a_model_that_never_reasons_may_be_asked_not_to() -> None:
    assert check(CHAT, reasoning_effort="none", chat_template_kwargs={"enable_thinking": False})
    assert check(CHAT, reasoning={"enabled": False}, separate_reasoning=False)


@pytest.mark.parametrize("name", ["separate_reasoning", "stream_reasoning"])
def test_reasoning_is_told_apart_only_where_it_can_be(name: str) -> None:
    assert refusal(CHAT, **{name: True}).param == name
    assert check(CHAT, limits=dataclasses.replace(LIMITS, parts_reasoning=True), **{name: True})


def test_parallel_calls_need_tools() -> None:
    assert refusal(CHAT, parallel_tool_calls=False).param == "parallel_tool_calls"
    assert check(CHAT, parallel_tool_calls=True)
    assert check(CHAT, parallel_tool_calls=False, tools=TOOLS)


@pytest.mark.parametrize(
    ("fields", "prompt_tokens", "output_tokens"),
    [
        ({"prompt": [1] * 250, "max_tokens": 7}, 250, 7),
        ({"prompt": [1] * 256, "max_tokens": 1}, 256, 1),
        ({"prompt": [[1], [1] * 256], "max_tokens": 1}, 256, 1),
        ({"prompt": [1] * 241}, 241, 16),
    ],
)
def test_token_ids_that_exceed_the_context_are_refused_as_openai_does(
    fields: dict[str, Any], prompt_tokens: int, output_tokens: int
) -> None:
    error = refusal(COMPLETIONS, **fields)
    assert (error.status, error.param, error.code) == (400, "prompt", "context_length_exceeded")
    assert str(error).startswith(
        f"This model's maximum context length is 256 tokens. However, you requested {prompt_tokens + output_tokens} "
        f"tokens ({prompt_tokens} in the prompt, {output_tokens} in the completion)."
    )


@pytest.mark.parametrize(("prompt", "output"), [(255, 1), (248, 8), (1, 255), (240, None)])
def test_token_ids_may_fill_the_context(prompt: int, output: int | None) -> None:
    assert check(COMPLETIONS, prompt=[1] * prompt, max_tokens=output)


@pytest.mark.parametrize(
    ("content_type", "raw", "words"),
    [
        ("text/plain", b"{}", "Content-Type must be application/json (found text/plain)."),
        ("", b"{}", "found none"),
        ("application/json", b"", "The body must be JSON (EOF"),
        ("application/json", b"\xff", "The body must be JSON"),
        ("application/json", b'{"a":NaN}', "The body must be JSON"),
        ("application/json", b'{"a":"\\ud800"}', "The body must be JSON"),
        ("application/json", b"[" * 10_000, "recursion limit"),
        ("application/json", b"[" * 100_000, "at most 32768 lists and objects"),
        ("application/json", b"[1]", "The body must be a JSON object."),
        ("application/json", gzip.compress(b"{}"), "found gzip data"),
        ("application/json", b"9" * 9999, "The body must be JSON"),
    ],
)
def test_bytes_that_are_no_object_are_refused(content_type: str, raw: bytes, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        json_object(content_type, raw)


def test_the_content_type_may_carry_parameters() -> None:
    assert json_object("Application/JSON; charset=utf-8", b'{"a": 1}') == {"a": 1}
