"""What a checked request brings: users, who share the engine's steps, and the tokens that are expected of it. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from sparktier.serving.gateway.requests.schema import DEFAULT_MAX_TOKENS
from sparktier.serving.gateway.tenants.allowance import Load

# Of English text; what the engine counts takes its place once it is known.
_CHARACTERS_PER_TOKEN = 4
# A chat without a bound ends long before its context as a rule.
_UNBOUNDED_TOKENS = 1024
# What replicas are chosen by reads no more of a prompt.
_BEGINNING = 16_384
# What a chat's prompt is written from.
_PROMPT_FIELDS = ("messages", "tools", "chat_template_kwargs")


def load_of(body: Mapping[str, Any]) -> Load:
    """Return the load of a request: each choice of each prompt is a user."""
    prompts = _prompts(body)
    users = int(body.get("n", 1)) * len(prompts)
    prompt_tokens = sum(map(_tokens, prompts))
    return Load(users, prompt_tokens + users * _answer_tokens(body), prompt_tokens, _beginning(prompts[0]))


def _beginning(prompt: str | list[int]) -> str:
    """Return the beginning of `prompt` as text."""
    return prompt[:_BEGINNING] if isinstance(prompt, str) else " ".join(map(str, prompt[:_BEGINNING]))


def _prompts(body: Mapping[str, Any]) -> list[Any]:
    if "prompt" not in body:
        return [json.dumps([body.get(name) for name in _PROMPT_FIELDS if name in body], ensure_ascii=False)]
    prompt = body["prompt"]
    return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


def _tokens(prompt: str | list[int]) -> int:
    """Return the tokens of `prompt`; of a text, about as many."""
    return len(prompt) if isinstance(prompt, list) else -(-len(prompt) // _CHARACTERS_PER_TOKEN)


def _answer_tokens(body: Mapping[str, Any]) -> int:
    """Return the most tokens of one choice."""
    longest = body.get("max_completion_tokens") or body.get("max_tokens")
    return int(longest or (DEFAULT_MAX_TOKENS if "prompt" in body else _UNBOUNDED_TOKENS))
