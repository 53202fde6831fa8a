"""OpenAI's own Python client against a real deployment: what people will do with it first."""

import json
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types import CompletionUsage

from support.deployment import MODEL, Deployment

pytestmark = pytest.mark.engine
ASKED = [{"role": "user", "content": "ba be bi"}]
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["good", "bad"]}},
    "required": ["count", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(sharded: Deployment) -> OpenAI:
    return sharded.client()


def complete(client: OpenAI, **options: object) -> str:
    settings = {"prompt": "ba be bi", "max_tokens": 16, "temperature": 0, **options}
    return client.completions.create(model=MODEL, **settings).choices[0].text


def test_a_chat_is_answered_and_its_tokens_counted(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=12, temperature=0)
    assert answer.model == MODEL
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == 12 + answer.usage.prompt_tokens


def test_a_chat_is_its_template_completed(client: OpenAI) -> None:
    prompt = "<|im_start|>user\nba be bi<|im_end|>\n<|im_start|>assistant\n"
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=16, temperature=0)
    assert answer.choices[0].message.content == complete(client, prompt=prompt)


def counted(usage: CompletionUsage | None) -> dict[str, Any]:
    """What `usage` says of a request, its times left out: those of another run are others."""
    assert usage is not None
    found = usage.model_dump()
    served = {name: value for name, value in found["sparktier"].items() if name not in ("attained_tok_s", "ttft_ms")}
    return found | {"sparktier": served}


def test_a_stream_carries_the_same_text_piece_by_piece(client: OpenAI) -> None:
    settings = {"model": MODEL, "messages": ASKED, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**settings)
    events = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(bool(piece) for piece in pieces) > 4
    assert counted(events[-1].usage) == counted(whole.usage)
    assert [event.usage for event in events[:-1]] == [None] * (len(events) - 1)


def test_a_streamed_completion_has_usage_only_when_asked_for(client: OpenAI) -> None:
    events = list(client.completions.create(model=MODEL, prompt="ba", max_tokens=4, temperature=0, stream=True))
    assert "".join(event.choices[0].text for event in events) == complete(client, prompt="ba", max_tokens=4)
    assert all(event.usage is None for event in events)


def test_a_stop_string_ends_the_text_before_it(client: OpenAI) -> None:
    text = complete(client, max_tokens=32)
    stop = text[10:12]
    answer = client.completions.create(model=MODEL, prompt="ba be bi", max_tokens=32, temperature=0, stop=[stop])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_n_choices_differ_and_are_numbered(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="ba", max_tokens=24, temperature=1, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 72


def test_several_prompts_are_answered_in_their_order(client: OpenAI) -> None:
    prompts = ["ba be", "zo zu zi", "ku"]
    answer = client.completions.create(model=MODEL, prompt=prompts, max_tokens=8, temperature=0)
    assert [choice.text for choice in answer.choices] == [
        complete(client, prompt=prompt, max_tokens=8) for prompt in prompts
    ]


def test_logprobs_of_a_greedy_chat_are_those_of_its_best_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert len(entries) == 6
    for entry in entries:
        best = [top.logprob for top in entry.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert entry.logprob == best[0] < 0
    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content


def test_a_seed_fixes_what_is_sampled(client: OpenAI) -> None:
    same = [complete(client, temperature=1, max_tokens=24, seed=7) for _ in range(2)]
    other = complete(client, temperature=1, max_tokens=24, seed=8)
    assert same[0] == same[1] != other


def test_a_seed_fixes_n_choices_that_differ(client: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "ba be bi", "max_tokens": 24, "temperature": 1, "seed": 7, "n": 3}
    first, again = ([choice.text for choice in client.completions.create(**asked).choices] for _ in range(2))
    assert first == again
    assert len(set(first)) == 3
    assert first[0] == complete(client, temperature=1, max_tokens=24, seed=7)


def test_output_follows_a_json_schema(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ASKED,
        max_tokens=120,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA, "strict": True}},
    )
    assert answer.choices[0].finish_reason == "stop"
    report = json.loads(answer.choices[0].message.content or "")
    assert report.keys() == {"count", "kind"}
    assert 0 <= report["count"] <= 99
    assert report["kind"] in ("good", "bad")


def test_the_one_model_is_listed_without_its_place_on_disk(client: OpenAI) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == [MODEL]
    assert "/" not in models[0].model_dump_json()
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_offsets_find_each_token_of_prompt_and_answer(client: OpenAI, stream: bool) -> None:
    asked = {"model": MODEL, "prompt": "ba be bi", "max_tokens": 8, "temperature": 0, "echo": True, "logprobs": 1}
    answers = list(client.completions.create(**asked, stream=True)) if stream else [client.completions.create(**asked)]
    choices = [answer.choices[0] for answer in answers if answer.choices]
    text = "".join(choice.text for choice in choices)
    found = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for logprobs in found for token in logprobs.tokens or ()]
    offsets = [offset for logprobs in found for offset in logprobs.text_offset or ()]
    assert text.startswith("ba be bi")
    assert len(tokens) == len(offsets) == 11
    assert [text[offset : offset + len(token)] for token, offset in zip(tokens, offsets, strict=True)] == tokens
    assert "".join(tokens) == text


MOODS = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": MOODS}} for name in ("praise", "scold")]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "scold"}}], ids=["any", "named"]
)
def test_a_required_tool_is_called(client: OpenAI, choice: object, stream: bool) -> None:
    asked = {"model": MODEL, "messages": ASKED, "max_tokens": 250, "temperature": 0, "tools": TOOLS}
    asked |= {"tool_choice": choice, "parallel_tool_calls": False}
    if stream:
        events = [event.choices[0] for event in client.chat.completions.create(**asked, stream=True) if event.choices]
        calls = [call.function for event in events for call in event.delta.tool_calls or ()]
        name, arguments = calls[0].name, "".join(call.arguments or "" for call in calls)
        content, reason = "".join(event.delta.content or "" for event in events), events[-1].finish_reason
    else:
        answer = client.chat.completions.create(**asked).choices[0]
        [call] = answer.message.tool_calls or ()
        name, arguments = call.function.name, call.function.arguments
        content, reason = answer.message.content or "", answer.finish_reason
    assert name in ("praise", "scold") if choice == "required" else name == "scold"
    assert json.loads(arguments)["mood"] in ("good", "bad")
    assert (content, reason) == ("", "tool_calls")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_text_beyond_the_context_is_refused_as_openai_does(client: OpenAI, stream: bool) -> None:
    long = [{"role": "user", "content": "ba " * 600}]
    with pytest.raises(BadRequestError) as chat:
        client.chat.completions.create(model=MODEL, messages=long, max_tokens=8, stream=stream)
    with pytest.raises(BadRequestError) as completion:
        client.completions.create(model=MODEL, prompt="ba be bi", max_tokens=510, stream=stream)
    assert (chat.value.code, chat.value.param) == ("context_length_exceeded", "messages")
    assert (completion.value.code, completion.value.param) == ("context_length_exceeded", "prompt")
    assert "you requested 513 tokens (3 in the prompt, 510 in the completion)" in str(completion.value)
