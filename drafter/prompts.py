"""Prompts as files (`{"turns": [...]}` a line) and the splits they fall into by their own text.

The split is a function of the text alone: whatever files a prompt comes from and in whatever order, it never trains a
drafter and also judges or calibrates it. Knows nothing of where prompts come from or of tokens.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.files import staged

Split = Literal["train", "calibrate", "evaluate"]
CALIBRATE_SHARE, EVALUATE_SHARE = 5, 5


@dataclass(frozen=True)
class Prompt:
    """What a user says, turn by turn."""

    turns: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Return a hash of the first turn without case and spacing: variants of a prompt must not cross splits."""
        essence = " ".join(self.turns[0].lower().split())
        return hashlib.sha256(essence.encode()).hexdigest()

    @property
    def split(self) -> Split:
        """Return the split this prompt belongs to, for good: 90% train, 5% calibrate, 5% evaluate."""
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
    """Read a jsonl file of prompts.

    Raises:
        ArtifactError: a line is no prompt; it is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: must be a readable jsonl file of prompts ({error}). Check the path.") from None
    return [_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _parsed(line: str, where: str) -> Prompt:
    try:
        turns = json.loads(line)["turns"]
    except (ValueError, KeyError, TypeError):
        turns = None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ArtifactError(f'{where}: a prompt is {{"turns": ["text", ...]}} (found {line[:60]!r}). Mend the line.')
    return Prompt(tuple(turns))


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write a jsonl file of prompts."""
    with staged(path) as part:
        part.write_text("".join(json.dumps({"turns": prompt.turns}) + "\n" for prompt in prompts), encoding="utf-8")
