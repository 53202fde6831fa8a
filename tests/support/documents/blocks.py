"""Fenced blocks of the documents, and which of them can be run here."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[3]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
# Where the first line of a block of commands is such a comment, the block isn't run with the others.
_MARK = re.compile(r"^# (needs .+|stays in the foreground)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block: its file, the line of its fence, its language, and its text without the page's indentation."""

    file: Path
    line: int
    language: str
    text: str

    @property
    def mark(self) -> str | None:
        """Return what the block needs, or None for one that runs anywhere."""
        found = _MARK.match(self.text)
        return None if found is None else found[1]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


@cache
def documents() -> tuple[Path, ...]:
    """Return the Markdown files that git tracks or would track, without those of others."""
    told = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return tuple(ROOT / name for name in sorted(set(told.stdout.split())) if (ROOT / name).is_file())


def blocks_of(file: Path) -> Iterator[Block]:
    """Yield the fenced blocks of `file`."""
    text = file.read_text()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(file, line, found["language"], dedent(found["text"]))


def blocks() -> list[Block]:
    """Return the blocks of every document."""
    return [block for file in documents() for block in blocks_of(file)]
