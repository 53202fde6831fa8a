"""How a source file looks: it opens with what it owns, is short, has short functions, and leaves nothing for later."""

import ast
import re
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("configs", "kernels", "drafter", "cluster", "serving")
SOURCES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES = 500
# Lines of a function: from `def` to its last line, docstring and functions inside it included.
MOST_FUNCTION_LINES = 60
MOST_P90_FUNCTION_LINES = 25


def short(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", [*SOURCES, *TESTS], ids=short)
def test_a_file_opens_with_what_it_owns(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text())), "the first lines say what the file owns"


@pytest.mark.parametrize("file", [*SOURCES, *TESTS], ids=short)
def test_a_file_stays_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("file", [*SOURCES, *TESTS], ids=short)
def test_a_file_leaves_nothing_for_later(file: Path) -> None:
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"))
    assert not re.search(rf"\b({marks})\b", file.read_text())


def test_functions_are_short() -> None:
    lengths = [length for file in SOURCES for _, length in function_lengths(file.read_text())]
    assert statistics.quantiles(lengths, n=10)[-1] <= MOST_P90_FUNCTION_LINES


@pytest.mark.parametrize("file", SOURCES, ids=short)
def test_no_function_is_long(file: Path) -> None:
    lengths = dict(function_lengths(file.read_text()))
    assert {name: length for name, length in lengths.items() if length > MOST_FUNCTION_LINES} == {}


def test_the_lines_of_a_function_are_counted() -> None:
    source = '@cache\ndef outer():\n    """Doc."""\n\n    async def inner():\n        pass\n    return inner\n'
    assert dict(function_lengths(source)) == {"outer": 6, "inner": 2}


def function_lengths(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield node.name, node.end_lineno - node.lineno + 1


def test_every_package_is_installed_and_typed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        "sparktier." + ".".join(file.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*.py")
    }
    assert found <= listed
    assert all((ROOT / folder / "py.typed").is_file() for folder in FOLDERS)


def test_data_files_are_installed() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folders = {f"sparktier.{'.'.join(file.parent.relative_to(ROOT).parts)}": file.parent for file in SOURCES}
    patterns = [(folders[package], pattern) for package, listed in data.items() for pattern in listed]
    covered = {file for folder, pattern in patterns for file in folder.glob(pattern)}
    kinds = {".json", ".md", ".proto", ".txt", ".yaml"}
    found = {file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in kinds}
    assert found <= covered


def test_tests_have_no_package_files() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
