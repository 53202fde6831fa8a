"""Translates SGLang's refusals of requests into the words, codes and fields of OpenAI's API, without the file names,
command-line flags and Python objects in them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparktier.configs.errors import REQUEST_ENDED

TOO_LONG = "context_length_exceeded"
_INVALID_VALUE, _GRAMMAR, _OTHER = "invalid_value", "invalid_grammar", "invalid_request"
_TOTAL_TOO_LONG = re.compile(
    r"maximum context length of (\d+) tokens\. You requested a total of \d+ tokens: (\d+) tokens from .* and (\d+) "
)
_PROMPT_TOO_LONG = re.compile(
    r"input \((\d+) tokens\) is longer than the model's context length \((\d+) |"
    r"Input length \((\d+) tokens\) exceeds the maximum allowed length \((\d+) "
)
# One entry of what SGLang makes of a pydantic error: "{'type': 'missing', 'loc': ('body', 'a', 0), 'msg': 'Field ...'".
_PYDANTIC_ENTRY = re.compile(r"""'loc': \((.*?)\), 'msg': (?:'([^']*)'|"([^"]*)")""")
_GRAMMAR_SOURCE = re.compile(r"\[\d\d:\d\d:\d\d\] /\S+:\d+: ")
_PATH = re.compile(r"(?<![\w:/])/(?:[\w.~-]+/)+[\w.~-]*")
_FAILED_GRAMMAR = re.compile(r"^Failed to compile \w+ grammar: ")
# The fields that bind the output; one of them at most is in force.
_GRAMMAR_FIELDS = ("response_format", "json_schema", "regex", "ebnf", "tools")
# A sentence with advice for an operator.
_FLAG = re.compile(r"(?:^|(?<=[.!?;] ))[^.!?;]*(?:(?<![\w-])--[a-z][\w-]+|\bSGLANG_\w+)[^.!?;]*[.!?;]?\s*")
# Beginnings of messages, with the field at fault and a code.
_KNOWN = (
    (re.compile(r"Tool \d+ function has invalid"), "tools", "invalid_function_parameters"),
    (re.compile(r"Tool names must be unique"), "tools", _INVALID_VALUE),
    (re.compile(r"Tool '.*' not found|Tools cannot be empty|tool_choice "), "tool_choice", _INVALID_VALUE),
    (
        re.compile(r"(?i)(?:failed to compile|invalid|unsupported) .{0,40}(?:grammar|schema|regex|ebnf)"),
        None,
        _GRAMMAR,
    ),
)


@dataclass(frozen=True)
class Refusal:
    """A refusal as clients get it; `param` is the field at fault, where it is known."""

    message: str
    code: str
    param: str | None = None


def too_long(context_tokens: int, *, prompt_tokens: int, output_tokens: int, param: str) -> Refusal:
    """Return the refusal of a request whose prompt, in the field `param`, leaves no room for the output asked for."""
    message = (
        f"This model's maximum context length is {context_tokens} tokens. However, you requested "
        f"{prompt_tokens + output_tokens} tokens ({prompt_tokens} in the {param}, {output_tokens} in the completion). "
        f"Please reduce the length of the {param} or the completion."
    )
    return Refusal(message, TOO_LONG, param)


def refusal(said: str, *, asked: Mapping[str, Any]) -> Refusal | None:
    """Return the refusal that SGLang `said` for the request `asked`, or None where no part of it is for clients."""
    grammar = next((name for name in _GRAMMAR_FIELDS if name in asked), None)
    if grammar and (said.startswith(REQUEST_ENDED) or _FAILED_GRAMMAR.match(said)):
        cause = _FAILED_GRAMMAR.sub("", said.removeprefix(REQUEST_ENDED))
        return Refusal(f"{grammar}: {_for_clients(cause)}", _GRAMMAR, grammar)
    prompt_field = "messages" if "messages" in asked else "prompt"
    if found := _TOTAL_TOO_LONG.search(said):
        context, prompt, output = map(int, found.groups())
        return too_long(context, prompt_tokens=prompt, output_tokens=output, param=prompt_field)
    if found := _PROMPT_TOO_LONG.search(said):
        prompt, context = [int(number) for number in found.groups() if number]
        message = (
            f"This model's maximum context length is {context} tokens. However, your {prompt_field} resulted in "
            f"{prompt} tokens. Please reduce the length of the {prompt_field}."
        )
        return Refusal(message, TOO_LONG, prompt_field)
    if entries := _PYDANTIC_ENTRY.findall(said):
        rules = "; ".join(f"{_field_path(loc)}: {single or double}" for loc, single, double in entries[:3])
        return Refusal(rules, _INVALID_VALUE, _field_path(entries[0][0]))
    message = _for_clients(said)
    if not message:
        return None
    param, code = next(((param, code) for words, param, code in _KNOWN if words.match(message)), (None, _OTHER))
    return Refusal(message, code, param)


def _for_clients(said: str) -> str:
    """Return the first paragraph of `said` without the parts that are for operators."""
    paragraph = " ".join(_GRAMMAR_SOURCE.sub("", said).split("\n\n")[0].split())
    return _PATH.sub("...", _FLAG.sub("", paragraph)).strip()


def _field_path(python_tuple: str) -> str:
    parts = [part.strip(" '\"") for part in python_tuple.split(",")]
    return ".".join(part for part in parts if part.isdecimal() or (part.isidentifier() and part != "body")) or "body"
