"""What OpenAI's current Python client is promised; run in its own environment (make_clients) against SPARKTIER_URL."""

import json
import os
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

URL, KEY, MODEL = (os.environ[f"SPARKTIER_{name}"] for name in ("URL", "KEY", "MODEL"))
ASKED: list[Any] = [{"role": "user", "content": "Name three rivers."}]
MOODS = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": MOODS}} for name in ("praise", "scold")
]
# A greedy answer of the tests' model may be white space without end, which grammars of JSON allow.
SAMPLED: dict[str, Any] = {"temperature": 1, "seed": 1, "max_tokens": 2000}
LONG: dict[str, Any] = {"prompt": "One two", "max_tokens": 4000, "stream": True, "extra_body": {"ignore_eos": True}}


class Report(BaseModel):
    count: int
    good: bool


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=180) as found:
        yield found


def chat(client: OpenAI, **fields: Any) -> Any:
    settings = {"model": MODEL, "messages": ASKED, "max_tokens": 16, "temperature": 0, **fields}
    return client.chat.completions.create(**settings)


def completed(client: OpenAI, **fields: Any) -> Any:
    settings = {"model": MODEL, "prompt": "One two three", "max_tokens": 16, "temperature": 0, **fields}
    return client.completions.create(**settings)


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_chat_is_answered(client: OpenAI) -> None:
    answer = chat(client)
    assert (answer.model, answer.choices[0].message.role) == (MODEL, "assistant")
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.sparktier["tier"] == "standard"


def test_a_stream_has_the_text_of_the_whole_answer_and_its_usage_at_the_end(client: OpenAI) -> None:
    whole = chat(client)
    events = list(chat(client, stream=True, stream_options={"include_usage": True}))
    said = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert said == whole.choices[0].message.content
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert events[-1].usage.sparktier["tier"] == "standard"
    assert all(event.usage is None for event in events[:-1])


def test_the_client_s_own_helper_reads_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=ASKED, max_tokens=16, temperature=0) as stream:
        done = [event.content for event in stream if event.type == "content.done"]
    assert done == [chat(client).choices[0].message.content]


def test_choices_are_numbered_and_differ(client: OpenAI) -> None:
    answer = chat(client, n=3, temperature=1, max_tokens=24)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3


def test_log_probabilities_are_those_of_the_tokens(client: OpenAI) -> None:
    choice = chat(client, logprobs=True, top_logprobs=2).choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    for entry in choice.logprobs.content:
        best = [top.logprob for top in entry.top_logprobs]
        assert len(best) == 2
        assert entry.logprob == best[0] == max(best)
    told = completed(client, logprobs=2).choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 16


def test_a_seed_fixes_what_is_sampled(client: OpenAI) -> None:
    texts = [completed(client, temperature=1, max_tokens=32, seed=seed).choices[0].text for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_an_answer_has_the_type_that_was_asked_for(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Report, **SAMPLED)
    assert isinstance(answer.choices[0].message.parsed, Report)


def test_a_stream_has_the_type_that_was_asked_for(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=ASKED, response_format=Report, **SAMPLED) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Report)


def test_a_required_tool_is_called_whole_and_streamed(client: OpenAI) -> None:
    named = {"type": "function", "function": {"name": "scold"}}
    asked = {"tools": TOOLS, "tool_choice": named, "parallel_tool_calls": False, **SAMPLED}
    choice = chat(client, **asked).choices[0]
    [call] = choice.message.tool_calls
    with client.chat.completions.stream(model=MODEL, messages=ASKED, **asked) as stream:
        told = stream.get_final_completion().choices[0]
    [streamed] = told.message.tool_calls
    for name, arguments, reason in (
        (call.function.name, call.function.arguments, choice.finish_reason),
        (streamed.function.name, streamed.function.arguments, told.finish_reason),
    ):
        assert (name, reason) == ("scold", "tool_calls")
        assert json.loads(arguments)["mood"] in ("good", "bad")


def test_the_result_of_a_tool_is_taken(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "praise", "arguments": '{"mood": "good"}'}}
    told = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    assert chat(client, messages=told, tools=TOOLS).choices[0].message.content is not None


@pytest.mark.parametrize(
    ("source", "tier"),
    [
        ({}, "standard"),
        ({"extra_headers": {"x-sparktier-tier": "gold"}}, "gold"),
        ({"service_tier": "priority"}, "lone"),
        ({"service_tier": "auto"}, "standard"),
    ],
)
def test_the_answer_names_the_tier_that_served_it(client: OpenAI, source: dict[str, Any], tier: str) -> None:
    settings: dict[str, Any] = {"model": MODEL, "messages": ASKED, "max_tokens": 4, **source}
    raw = client.chat.completions.with_raw_response.create(**settings)
    assert raw.headers["x-sparktier-tier"] == raw.parse().usage.sparktier["tier"] == tier
    assert raw.headers["x-request-id"]


def test_refusals_are_the_client_s_own_errors(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        chat(OpenAI(base_url=f"{URL}/v1", api_key="sk-wrong", max_retries=0))
    with pytest.raises(openai.NotFoundError) as unknown:
        chat(client, model="gpt-none")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        chat(client, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        chat(client, messages=[{"role": "user", "content": "One two " * 5000}])
    assert long.value.code == "context_length_exceeded"


def test_a_stream_that_is_closed_is_over(client: OpenAI) -> None:
    stream = client.completions.create(model=MODEL, **LONG)
    assert next(iter(stream)).choices
    stream.close()


async def test_the_asynchronous_client_streams_and_hangs_up() -> None:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=180) as client:
        stream = await client.completions.create(model=MODEL, **LONG)
        async for event in stream:
            assert event.choices
            break
        await stream.close()
