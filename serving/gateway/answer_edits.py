"""Edits of an engine's messages, whole answers or events, that make them keep what the request's fields promise.

SGLang gives -1 for every `text_offset`, puts what is no string into `metadata`, and binds parallel calls of tools only
where a grammar binds the calls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Edit = Callable[[dict[str, Any]], None]


def edits_for(body: Mapping[str, Any]) -> tuple[Edit, ...]:
    """Return new edits for the answer to the request `body`; they keep state, so they serve one answer."""
    edits: list[Edit] = [] if body.get("stream") else [without_weight_versions]
    if "prompt" in body and body.get("logprobs") is not None:
        edits.append(TextOffsets().fill)
    if body.get("parallel_tool_calls") is False:
        edits.append(first_call_alone)
    if body.get("tools") and (body.get("tool_choice") == "required" or isinstance(body.get("tool_choice"), Mapping)):
        edits.append(no_space_beside_calls)
    return tuple(edits)


def without_weight_versions(message: dict[str, Any]) -> None:
    """Drop where SGLang tells the version of its weights: OpenAI's `metadata` has the client's own strings."""
    message.pop("metadata", None)


def first_call_alone(message: dict[str, Any]) -> None:
    """Keep only the first call of each choice."""
    for choice in message.get("choices", ()):
        said = choice.get("message") or choice.get("delta") or {}
        if calls := said.get("tool_calls"):
            said["tool_calls"] = [call for call in calls if call.get("index") in (0, None)] or None


def no_space_beside_calls(message: dict[str, Any]) -> None:
    """Drop the white space that a grammar allows between required calls, and that SGLang streams as content."""
    for choice in message.get("choices", ()):
        said = choice.get("message") or choice.get("delta") or {}
        if (content := said.get("content")) and content.isspace():
            said["content"] = None


@dataclass
class _TextPosition:
    """How far the tokens of a choice have been found in its text; tokens not found may have `behind` characters."""

    text: str = ""
    offset: int = 0
    behind: int = 0

    def of(self, token: str) -> int:
        """Return where `token` begins."""
        found = self.text.find(token, self.offset, self.offset + self.behind + len(token)) if token else -1
        if found < 0:
            # A special token that is not shown, a part of a character, or what a stop string took away.
            self.behind += max(1, len(token))
            return min(self.offset, len(self.text))
        self.offset, self.behind = found + len(token), 0
        return found


class TextOffsets:
    """Finds where in `choices[].text` each token of its logprobs begins, over all messages of one answer."""

    def __init__(self) -> None:
        self._positions: dict[int, _TextPosition] = {}

    def fill(self, message: dict[str, Any]) -> None:
        """Put the offsets into `message`."""
        for choice in message.get("choices", ()):
            position = self._positions.setdefault(choice.get("index", 0), _TextPosition())
            position.text += choice.get("text") or ""
            if logprobs := choice.get("logprobs"):
                logprobs["text_offset"] = [position.of(token or "") for token in logprobs.get("tokens", ())]
