"""A target's own answers as token ids, the bridge from prompts to features: one JSON object a line.

Whoever generates (an endpoint, an engine) appends; extraction and training read. Knows nothing of text or features.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from sparktier.configs.errors import ArtifactError

MIN_ANSWER_TOKENS = 2


@dataclass(frozen=True)
class Answer:
    """One conversation as the target saw and continued it: `digest` is its prompt's (`Prompt.digest`)."""

    digest: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def length_tokens(self) -> int:
        """Return the length of the sequence that features are made for."""
        return len(self.prompt_ids) + len(self.answer_ids)


def append_answer(path: Path, answer: Answer) -> None:
    """Add a line. A line that a crash cut is dropped by `read_answers`."""
    row = {"digest": answer.digest, "prompt_ids": answer.prompt_ids, "answer_ids": answer.answer_ids}
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")


def read_answers(path: Path) -> list[Answer]:
    """Return the answers long enough to train on; an unfinished last line is left out.

    Raises:
        ArtifactError: the file is missing, or another line is broken.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: must be a readable jsonl file of answers ({error}). Generate it.") from None
    whole = text[: text.rfind("\n") + 1].splitlines()
    answers = [_parsed(line, f"{path}:{number}") for number, line in enumerate(whole, 1)]
    return [answer for answer in answers if len(answer.answer_ids) >= MIN_ANSWER_TOKENS]


def _parsed(line: str, where: str) -> Answer:
    try:
        row = json.loads(line)
        return Answer(
            digest=str(row["digest"]),
            prompt_ids=tuple(int(token) for token in row["prompt_ids"]),
            answer_ids=tuple(int(token) for token in row["answer_ids"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{where}: an answer has digest, prompt_ids and answer_ids ({error!r}). Delete it."
        ) from None
