"""Reads a target's own answers as token ids, one JSON object per line; features are made from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparktier.configs.errors import ArtifactError
from sparktier.configs.json_lines import objects_in, read_lines, shown

MIN_ANSWER_TOKENS = 2
# Features are stored with ids of 32 bits.
_ID_END = 2**31


@dataclass(frozen=True)
class Answer:
    """A prompt and the target's answer to it; `digest` is that of the prompt (`Prompt.digest`)."""

    digest: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def length_tokens(self) -> int:
        """Return the length of the sequence that features are made for."""
        return len(self.prompt_ids) + len(self.answer_ids)


def read_answers(path: Path) -> list[Answer]:
    """Return the answers that are long enough to train on; an unfinished last line is left out.

    Raises:
        ArtifactError: the file is missing or holds no such answer, or another line is broken.
    """
    # The part after the last line feed is empty, or a line cut by a crash of its writer.
    whole = read_lines(path, "answers, jsonl")[:-1]
    answers = [_parsed(row, where) for where, row in objects_in(whole, path)]
    long_enough = [answer for answer in answers if len(answer.answer_ids) >= MIN_ANSWER_TOKENS]
    if not long_enough:
        raise ArtifactError(
            f"{path}: must hold an answer of {MIN_ANSWER_TOKENS} tokens or more (found none). Generate answers first."
        )
    return long_enough


def _parsed(row: Mapping[str, Any], where: str) -> Answer:
    return Answer(
        digest=str(row.get("digest", "")),
        prompt_ids=_ids(row, "prompt_ids", where),
        answer_ids=_ids(row, "answer_ids", where),
    )


def _ids(row: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
    ids = row.get(key)
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < _ID_END for token in ids):
        raise ArtifactError(
            f"{where}: an answer must have {key}, a list of token ids (found {shown(ids)}). Delete the line, or "
            "generate the answer again."
        )
    return tuple(ids)
