"""The table of test functions that moved, were renamed or removed: no test of BASE is lost without a reason.

A row of `test_functions.tsv` names a file that moved with all its functions, or one function, `path::name`, with the
functions that took its place and the reason. What neither moved nor changed its name needs no row.
"""

import ast
import csv
import functools
import io
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("test_functions.tsv")
BASE = "ed5e5aafba1011f2b18099024c96d08eb5921c85"

# Names of test functions by the path of their file.
Functions = Mapping[str, Sequence[str]]


class Row(NamedTuple):
    """One row of the table. `new` is empty where a test was removed, and several ids where it was split."""

    old: str
    new: tuple[str, ...]
    reason: str


def functions_in(source: str) -> list[str]:
    """Return the names of the test functions and methods of a file, in order."""
    return list(_functions(ast.parse(source), prefix=""))


def _functions(scope: ast.Module | ast.ClassDef, *, prefix: str) -> Iterator[str]:
    for node in scope.body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, prefix=f"{prefix}{node.name}::")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            yield prefix + node.name


@functools.cache
def functions_now() -> Functions:
    files = sorted((ROOT / "tests").rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): functions_in(file.read_text()) for file in files}


def git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False, timeout=60)


def functions_of_base() -> Functions:
    """Return the test functions of BASE; skips where its commit can't be read."""
    try:
        archive = git("archive", BASE, "tests")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if archive.returncode:
        pytest.skip(f"{BASE[:7]} is not in the history: {archive.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        sources = {member.name: files.extractfile(member) for member in files if member.name.endswith(".py")}
        return {path: functions_in(file.read().decode()) for path, file in sources.items() if file is not None}


def read_table(text: str) -> list[Row]:
    rows = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [Row(row["old"], tuple((row["new"] or "").split()), row["reason"] or "") for row in rows]


def ids(functions: Functions) -> set[str]:
    return {f"{path}::{name}" for path, names in functions.items() for name in names}


def lost(old: Functions, new: Functions, table: Sequence[Row]) -> list[str]:
    """Return the functions of `old` that are not in `new`, by their own name or by a row of the table."""
    files = {row.old: row.new[0] for row in table if "::" not in row.old and row.new}
    explained = {row.old for row in table if "::" in row.old}
    exist = ids(new)
    return [
        f"{path}::{name}"
        for path, names in old.items()
        for name in names
        if f"{path}::{name}" not in explained and f"{files.get(path, path)}::{name}" not in exist
    ]


def faults(new: Functions, table: Sequence[Row]) -> list[str]:
    """Return what is wrong with the table by itself: a path that does not exist, a reason or a file that is missing."""
    exist, once = ids(new) | set(new), [row.old for row in table]
    found = [f"{row.old}: {name} does not exist" for row in table for name in row.new if name not in exist]
    found += [f"{row.old}: must have a reason" for row in table if "::" in row.old and not row.reason]
    found += [f"{row.old}: a file needs one new path" for row in table if "::" not in row.old and len(row.new) != 1]
    return found + [f"{old}: is there {once.count(old)} times" for old in sorted(set(once)) if once.count(old) > 1]


def test_no_test_is_lost_without_a_reason() -> None:
    old = functions_of_base()
    assert len(ids(old)) > 600, "the tests of the base are read"
    table = read_table(TABLE.read_text())
    missing = lost(old, functions_now(), table)
    assert not missing, "\n".join(
        ("say in tests/house/test_functions.tsv what became of (old, new, reason):", *missing)
    )
    assert {row.old for row in table} <= ids(old) | set(old), "a row is of a test that the base does not have"


def test_every_path_of_the_table_exists() -> None:
    found = faults(functions_now(), read_table(TABLE.read_text()))
    assert not found, "\n".join(found)


OLD = {"tests/a.py": ["test_one", "test_two"], "tests/b.py": ["test_three"]}
MOVED = "old\tnew\treason\ntests/a.py\ttests/c/a.py\n"


@pytest.mark.parametrize(
    ("new", "row", "missing"),
    [
        ({"tests/c/a.py": ["test_two", "test_one"], "tests/b.py": ["test_three"]}, "", []),
        ({"tests/c/a.py": ["test_two"], "tests/b.py": ["test_three"]}, "", ["tests/a.py::test_one"]),
        ({"tests/c/a.py": ["test_one", "test_two"]}, "", ["tests/b.py::test_three"]),
        ({"tests/c/a.py": ["test_one", "test_two"]}, "tests/b.py::test_three\t\tholds no more\n", []),
        (OLD, "", ["tests/a.py::test_one", "tests/a.py::test_two"]),
    ],
    ids=["moved", "a function is lost", "a file is lost", "removed with a reason", "the table is ahead"],
)
def test_a_lost_function_is_seen(new: Functions, row: str, missing: list[str]) -> None:
    assert lost(OLD, new, read_table(MOVED + row)) == missing


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("tests/b.py::test_three\ttests/b.py::test_3\tshorter", "tests/b.py::test_3 does not exist"),
        ("tests/b.py::test_three\ttests/c/a.py::test_one", "must have a reason"),
        ("tests/b.py\t\tgone", "a file needs one new path"),
        ("tests/a.py\ttests/c/a.py", "is there 2 times"),
    ],
)
def test_a_wrong_row_is_seen(row: str, fault: str) -> None:
    (found,) = faults({"tests/c/a.py": ["test_one"]}, read_table(f"{MOVED}{row}\n"))
    assert fault in found


def test_functions_of_classes_and_coroutines_are_read() -> None:
    source = "def test_a(): ...\nclass TestB:\n    async def test_c(self): ...\ndef helper():\n    def test_d(): ...\n"
    assert functions_in(source) == ["test_a", "TestB::test_c"]
