"""Words that mislead stay out of the code: no identifier and no docstring uses them.

A "law" is a distribution, a draft that "stood" is accepted, and the others hide the subject of a sentence.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cluster", "configs", "drafter", "kernels", "serving", "tests")
WORD = re.compile(r"laws?|stood|climb\w*|whoever|nobody\w*", re.IGNORECASE)
# The words of an identifier: `TargetLaw`, `NO_LAW` and `target_law` each end in the word law.
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# This file alone must name them.
ALLOWED = ("tests/house/test_words.py",)


def misleading_words(source: str) -> list[str]:
    """Return `line: identifier` and `line: word of a docstring`, one for each use. A docstring's line is its first."""
    if not WORD.search(source):
        return []
    found = [(line, name) for line, name in _identifiers(source) if any(map(WORD.fullmatch, PARTS.findall(name)))]
    for line, text in _docstrings(source):
        found += [(line, word) for word in re.findall(r"[A-Za-z]+", text) if WORD.fullmatch(word)]
    return [f"{line}: {word}" for line, word in sorted(found)]


def _identifiers(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def _docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield every string that is a statement: docstrings, and what documents the name assigned above it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def words_by_file() -> dict[str, list[str]]:
    """Return the misleading words of every Python file that has one."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    words = {path.relative_to(ROOT).as_posix(): misleading_words(path.read_text()) for path in files}
    return {name: found for name, found in words.items() if found and name not in ALLOWED}


def test_no_misleading_word_is_used() -> None:
    assert words_by_file() == {}


def test_each_misleading_word_is_seen() -> None:
    sample = '''"""Whoever reads."""
class TargetLaw:
    """Nobody's."""
NO_LAW = 1
def all_stood(climbing: int, draftLaws: int) -> None: ...
Pair = int
"""What stood."""
'''
    found = ["1: Whoever", "2: TargetLaw", "3: Nobody", "4: NO_LAW", "5: all_stood", "5: climbing", "5: draftLaws"]
    assert misleading_words(sample) == [*found, "7: stood"]


def test_a_word_that_holds_one_a_comment_and_a_value_are_free() -> None:
    free = '"""An understood flaw, an outlaw; lawful."""\nflaws = understood = lawn = "nobody/model"  # nobody\n'
    assert misleading_words(free) == []
