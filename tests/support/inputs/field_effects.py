"""What each accepted field of a request changes in its answer: a request without it, one with it, and the difference.

A new field needs an entry here, or is refused, or is a label.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
EOS, MASK, LETTER = 1, 4, 70  # ids of the tiny model's tokenizer; the last is a printable character
ASKED = [{"role": "user", "content": "ba be bi"}]
BASE: Mapping[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "ba be bi", "max_tokens": 24, "temperature": 0},
    CHAT: {"messages": ASKED, "max_tokens": 24, "temperature": 0},
}
SCHEMA = {"enum": ["good", "bad"]}
DRAWN = {"temperature": 1.5, "seed": 1}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"mood": SCHEMA}, "required": ["mood"]},
        },
    }
    for name in ("praise", "scold")
]


class Said:
    """An answer, whole or streamed."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.status_code == 200, response.text
        self.streamed = response.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: {")]
        self.messages = [json.loads(line) for line in lines] if self.streamed else [response.json()]
        self.choice = self.messages[0]["choices"][0]
        self.usage = self.messages[-1].get("usage") or {}

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choice["text"] if "text" in self.choice else self.choice["message"]["content"]

    @property
    def tokens(self) -> int:
        """How many tokens were said."""
        return int(self.usage["completion_tokens"])

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The functions that the first choice calls."""
        return [call["function"] for call in self.choice["message"].get("tool_calls") or []]


Seen = Callable[[Said, Said], bool]


@dataclass(frozen=True)
class Effect:
    """`given` makes the difference `seen(without, with_it)`; `beside` is sent both times, in the place of BASE's."""

    given: dict[str, Any]
    seen: Seen
    beside: dict[str, Any] = field(default_factory=dict)


def _other_text(without: Said, with_it: Said) -> bool:
    return without.text != with_it.text


def _says(words: str) -> Seen:
    return lambda without, with_it: words in with_it.text and words not in without.text


def _in_schema(without: Said, with_it: Said) -> bool:
    return with_it.text in ('"good"', '"bad"') and with_it.choice["finish_reason"] == "stop"


def _ends(reason: str) -> Seen:
    return lambda without, with_it: with_it.choice["finish_reason"] == reason != without.choice["finish_reason"]


def _of_length(tokens: int) -> Seen:
    return lambda without, with_it: with_it.tokens == tokens != without.tokens


def _has(name: str) -> Seen:
    return lambda without, with_it: bool(with_it.choice.get(name)) and not without.choice.get(name)


def _tells(name: str) -> Seen:
    return lambda without, with_it: name in str(with_it.messages[0].get("sglext")) and name not in str(without.messages)


# The request without it has just put the prompt into the cache.
_CACHED = Effect({"return_cached_tokens_details": True}, _tells("cached_tokens_details"))
_FORCED = {"logit_bias": {str(LETTER): 100}}
_SILENT = {"logit_bias": {str(EOS): 100}}
BOTH: Mapping[str, Effect] = {
    "n": Effect({"n": 2}, lambda without, with_it: len(with_it.messages[0]["choices"]) == 2),
    "stream": Effect({"stream": True}, lambda without, with_it: with_it.streamed and not without.streamed),
    "stream_options": Effect(
        {"stream_options": {"include_usage": True}},
        lambda without, with_it: with_it.tokens == 24 and not without.usage,
        {"stream": True},
    ),
    "max_tokens": Effect({"max_tokens": 3}, _of_length(3)),
    "min_tokens": Effect(
        {"min_tokens": 5},
        lambda without, with_it: with_it.tokens >= 5 > without.tokens,
        {**_FORCED, "stop_token_ids": [LETTER]},
    ),
    "temperature": Effect({"temperature": 2}, _other_text, {"seed": 1}),
    "top_p": Effect({"top_p": 1e-6}, _other_text, DRAWN),
    "top_k": Effect({"top_k": 1}, _other_text, DRAWN),
    "min_p": Effect({"min_p": 1}, _other_text, DRAWN),
    "frequency_penalty": Effect({"frequency_penalty": 2}, _other_text, _FORCED | {"logit_bias": {str(LETTER): 9}}),
    "presence_penalty": Effect({"presence_penalty": 2}, _other_text, {"logit_bias": {str(LETTER): 9}}),
    "repetition_penalty": Effect({"repetition_penalty": 2}, _other_text, {"logit_bias": {str(LETTER): 9}}),
    "logit_bias": Effect(_FORCED, lambda without, with_it: len(set(with_it.text)) == 1 != len(set(without.text))),
    "seed": Effect({"seed": 2}, _other_text, DRAWN),
    "stop": Effect({"stop": "a"}, _ends("stop")),
    "stop_token_ids": Effect({"stop_token_ids": [LETTER]}, _ends("stop"), _FORCED),
    "regex": Effect({"regex": "[0-9]{7}"}, lambda without, with_it: with_it.text.isdigit() and len(with_it.text) == 7),
    "ebnf": Effect({"ebnf": 'root ::= "good" | "bad"'}, lambda without, with_it: with_it.text in ("good", "bad")),
    "response_format": Effect(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}, _in_schema
    ),
    "ignore_eos": Effect({"ignore_eos": True}, _ends("length"), _SILENT),
    "no_stop_trim": Effect({"no_stop_trim": True}, _says("a"), {"stop": "a"}),
    "return_cached_tokens_details": _CACHED,
    "skip_special_tokens": Effect({"skip_special_tokens": False}, _says("<|mask|>"), {"logit_bias": {str(MASK): 100}}),
}
EFFECTS: Mapping[str, Mapping[str, Effect]] = {
    COMPLETIONS: {
        **BOTH,
        "prompt": Effect({"prompt": "zo zu zi ku"}, _other_text),
        "json_schema": Effect({"json_schema": json.dumps(SCHEMA)}, _in_schema),
        "echo": Effect({"echo": True}, _says("ba be bi")),
        "logprobs": Effect({"logprobs": 2}, _has("logprobs")),
        "return_token_ids": Effect({"return_token_ids": True}, _has("token_ids")),
    },
    CHAT: {
        **BOTH,
        "messages": Effect({"messages": [{"role": "user", "content": "zo zu"}]}, _other_text),
        "max_completion_tokens": Effect({"max_completion_tokens": 3}, _of_length(3)),
        "logprobs": Effect({"logprobs": True}, _has("logprobs")),
        "top_logprobs": Effect(
            {"top_logprobs": 2},
            lambda without, with_it: len(with_it.choice["logprobs"]["content"][0]["top_logprobs"]) == 2,
            {"logprobs": True},
        ),
        "tools": Effect(
            {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
            lambda without, with_it: with_it.calls[0]["name"] in ("praise", "scold") and not without.calls,
            {"max_tokens": 250},
        ),
        "tool_choice": Effect(
            {"tool_choice": {"type": "function", "function": {"name": "scold"}}},
            lambda without, with_it: [call["name"] for call in with_it.calls] == ["scold"] and not without.calls,
            {"tools": TOOLS, "max_tokens": 250, "parallel_tool_calls": False},
        ),
        "parallel_tool_calls": Effect(
            {"parallel_tool_calls": False},
            lambda without, with_it: len(with_it.calls) == 1,
            {"tools": TOOLS, "tool_choice": "required", "max_tokens": 250},
        ),
        "chat_template_kwargs": Effect(
            {"chat_template_kwargs": {"style": "ku ku"}},
            lambda without, with_it: with_it.usage["prompt_tokens"] > without.usage["prompt_tokens"],
        ),
        "reasoning_effort": Effect(
            {"reasoning_effort": "high"},
            lambda without, with_it: with_it.usage["prompt_tokens"] > without.usage["prompt_tokens"],
        ),
        "reasoning": Effect(
            {"reasoning": {"effort": "high"}},
            lambda without, with_it: with_it.usage["prompt_tokens"] > without.usage["prompt_tokens"],
        ),
        "continue_final_message": Effect(
            {"continue_final_message": True},
            lambda without, with_it: with_it.usage["prompt_tokens"] < without.usage["prompt_tokens"],
            {"messages": [*ASKED, {"role": "assistant", "content": "bo"}]},
        ),
        "return_token_ids": Effect({"return_token_ids": True}, _has("response_token_ids")),
        "return_prompt_token_ids": Effect({"return_prompt_token_ids": True}, _has("prompt_token_ids")),
        "return_meta_info": Effect({"return_meta_info": True}, _has("meta_info")),
        "return_input_ids_in_sglext": Effect({"return_input_ids_in_sglext": True}, _tells("input_ids")),
        "return_output_ids_in_sglext": Effect({"return_output_ids_in_sglext": True}, _tells("output_ids")),
    },
}
# Accepted, yet of effect only on models that the tests don't serve, or bound to say what is so anyway.
ELSEWHERE = {
    "separate_reasoning": "only models with a parser of reasoning are asked it",
    "stream_reasoning": "the same",
    "best_of": "may only repeat n",
    "model": "there is one",
}
