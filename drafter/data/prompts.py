"""Reads and writes prompts as JSON lines, and assigns each to a split by its text.

The split depends on the text alone, not on files or their order, so a prompt that trains a drafter never evaluates or
calibrates it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import staged
from sparktier.configs.json_lines import objects_in, read_lines, require_text, shown

Split = Literal["train", "calibrate", "evaluate"]
CALIBRATE_SHARE, EVALUATE_SHARE = 5, 5
# The user's name in OpenAI's `role` and ShareGPT's `from`.
_USERS = ("user", "human")


@dataclass(frozen=True)
class Prompt:
    """The user's turns of a conversation."""

    turns: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Return a hash of the first turn without case and spacing: variants of a prompt must not cross splits."""
        essence = " ".join(self.turns[0].lower().split())
        return hashlib.sha256(essence.encode()).hexdigest()

    @property
    def split(self) -> Split:
        """Return the split of this prompt, which never changes: 90% train, 5% calibrate, 5% evaluate."""
        slot = int(self.digest[:8], 16) % 100
        if slot < CALIBRATE_SHARE:
            return "calibrate"
        return "evaluate" if slot < CALIBRATE_SHARE + EVALUATE_SHARE else "train"


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Drop later prompts whose first turn was seen before."""
    return list({prompt.digest: prompt for prompt in reversed(list(prompts))}.values())[::-1]


def of_split(prompts: Iterable[Prompt], split: Split) -> list[Prompt]:
    """Return the prompts of one split, in order."""
    return [prompt for prompt in prompts if prompt.split == split]


def read_prompts(path: Path) -> list[Prompt]:
    """Read a jsonl file of prompts: `turns`, OpenAI's `messages`, ShareGPT's `conversations` or a `prompt` a line.

    Only what users say is read, no response beside it: the target gives its own answers.

    Raises:
        ArtifactError: a line is no prompt; it is named.
    """
    lines = read_lines(path, "prompts, jsonl")
    return [_parsed(row, where) for where, row in objects_in(lines, path)]


def read_prompt_files(paths: Sequence[Path]) -> dict[str, list[Prompt]]:
    """Read several files; the keys are their names in reports: the file names without their ending.

    Raises:
        ArtifactError: two files have one name, or a file holds no prompt or something else.
    """
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem in named:
            raise ArtifactError(
                f"{path}: files of prompts must differ in name, by which reports tell them apart (found "
                f"{named[path.stem]} as well). Rename one, or name it once."
            )
        named[path.stem] = path
    prompts = {name: read_prompts(path) for name, path in named.items()}
    for name, path in named.items():
        if not prompts[name]:
            raise ArtifactError(f"{path}: must hold at least one prompt (found none). Add one, or leave the file out.")
    return prompts


def _parsed(row: Mapping[str, Any], where: str) -> Prompt:
    turns = _turns(row, where)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ArtifactError(
            f'{where}: a prompt is {{"turns": ["text", ...]}}, a prompt, or messages or conversations in which a '
            f"user says something (found {shown(row)}). Mend or delete the line."
        )
    return Prompt(tuple(require_text(turn, where) for turn in turns))


def _turns(row: Mapping[str, Any], where: str) -> object:
    """Return what the user says; a `prompt` is text, or messages as preference data has them."""
    if "turns" in row:
        return row["turns"]
    prompt = row.get("prompt")
    return [prompt] if isinstance(prompt, str) else _said(row.get("messages", row.get("conversations", prompt)), where)


def _said(messages: object, where: str) -> list[Any]:
    """Return the user's turns of a conversation in OpenAI's or ShareGPT's form."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return []
    return [
        _text(message.get("content", message.get("value")), where)
        for message in messages
        if message.get("role", message.get("from")) in _USERS
    ]


def _text(content: object, where: str) -> object:
    """Return a message's text; OpenAI allows a list of parts, of which only text parts are taken."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        raise ArtifactError(
            f"{where}: what a user says must be text (found {shown(content)}). Delete the line; images and files are "
            "not drafted for."
        )
    return "".join(str(text) for text in texts)


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write a jsonl file of prompts."""
    with staged(path) as part:
        part.write_text("".join(json.dumps({"turns": prompt.turns}) + "\n" for prompt in prompts), encoding="utf-8")
