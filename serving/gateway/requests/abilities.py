"""Refuses what the served model can't do: more tokens than its context has, tools that can't be read from its answers,
reasoning and template arguments that its chat template doesn't read.
"""

from collections.abc import Mapping
from typing import Any

from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.gateway.engine_refusals import too_long
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests.schema import Completion, Generation

UNSUPPORTED = "unsupported_parameter"
_REASONING_NAMES = frozenset({"enable_thinking", "reasoning_effort", "thinking"})
# SGLang takes these from the template's arguments, whether or not the template reads them.
_READ_BY_SGLANG = frozenset({"reasoning_effort", "spaces_between_special_tokens"})


def require_room(request: Generation, limits: EngineLimits) -> None:
    """Raise Refused where a prompt of token ids and its output exceed the context. The engine checks texts."""
    prompt = request.prompt if isinstance(request, Completion) else ""
    output_tokens = request.longest_output
    if output_tokens is None or isinstance(prompt, str) or isinstance(prompt[0], str):
        return
    lists = [prompt] if isinstance(prompt[0], int) else prompt
    prompt_tokens = max(len(ids) for ids in lists if isinstance(ids, list))
    if prompt_tokens + output_tokens > limits.context_tokens:
        found = too_long(
            limits.context_tokens, prompt_tokens=prompt_tokens, output_tokens=output_tokens, param="prompt"
        )
        raise Refused(found.message, param=found.param, code=found.code)


def require_abilities(chat: Mapping[str, Any], limits: EngineLimits) -> None:
    """Raise Refused where `chat` asks for what the model's answers don't have or its chat template doesn't read."""
    tools = chat.get("tools") or any(message.get("tools") for message in chat["messages"])
    if tools and chat.get("tool_choice") != "none" and not limits.calls_tools:
        raise _unsupported("tools", "no calls of tools can be read from this model's answers")
    if chat.get("parallel_tool_calls") is False and not tools:
        raise _unsupported("parallel_tool_calls", "it says nothing without tools")
    for name in ("separate_reasoning", "stream_reasoning"):
        if chat.get(name) and not limits.parts_reasoning:
            raise _unsupported(name, "reasoning is not told apart from this model's answers")
    if limits.template_reads is None:
        return
    if not _REASONING_NAMES & limits.template_reads:
        _require_no_reasoning(chat)
    arguments = chat.get("chat_template_kwargs") or {}
    for name, value in arguments.items():
        if value not in (None, False) and name not in limits.template_reads | _READ_BY_SGLANG:
            raise _unsupported(f"chat_template_kwargs.{name[:60]}", "this model's chat template does not read it")


def _require_no_reasoning(chat: Mapping[str, Any]) -> None:
    """Raise Refused where `chat` asks for reasoning. Asking a model that never reasons not to do so is allowed."""
    reason = "this model's chat template has no reasoning to turn on"
    if chat.get("reasoning_effort", "none") != "none":
        raise _unsupported("reasoning_effort", reason)
    reasoning = chat.get("reasoning")
    if reasoning is not None and reasoning not in ({"effort": "none"}, {"enabled": False}):
        raise _unsupported("reasoning", reason)


def _unsupported(name: str, reason: str) -> Refused:
    return Refused(f"{name}: {reason}. Leave it out.", param=name, code=UNSUPPORTED)
