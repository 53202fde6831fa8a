"""upstream: what counts as changed, and that the installed SGLang is the recorded one."""

import zipfile
from pathlib import Path

import pytest

from sparktier.configs.errors import UpstreamError
from sparktier.serving.engine.upstream import check as upstream
from sparktier.serving.engine.upstream.check import Lock, compare, read_lock, record, require_version
from sparktier.serving.engine.upstream.manifest import USES, Use
from sparktier.serving.engine.upstream.source import installed_root, symbol_hash

MODULE = '''
"""Doc."""
import os
from pkg.deep import moved as renamed
from .deep import Inner
from . import deep

LIMIT: int = 3
if os.name == "posix":
    def hidden(a):
        return a
else:
    hidden = None

class Outer:
    field = 1
    def method(self, x):
        return x + 1
    class Nested:
        def leaf(self): ...
'''
DEEP = "def moved():\n    return 1\nclass Inner:\n    def method(self): return 2\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, MODULE, DEEP)
    return tmp_path


def write(root: Path, module: str, deep: str) -> None:
    (root / "pkg").mkdir(exist_ok=True)
    (root / "pkg" / "__init__.py").write_text(module)
    (root / "pkg" / "deep.py").write_text(deep)


SYMBOLS = [
    "pkg",
    "pkg.deep",
    "pkg:LIMIT",
    "pkg:hidden",
    "pkg:Outer",
    "pkg:Outer.method",
    "pkg:Outer.field",
    "pkg:Outer.Nested.leaf",
    "pkg:renamed",
    "pkg:Inner.method",
    "pkg:deep.moved",
]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_form_of_a_symbol_is_found(root: Path, symbol: str) -> None:
    assert symbol_hash(root, symbol)


@pytest.mark.parametrize("symbol", ["pkg:gone", "pkg.gone", "pkg:Outer.gone", "pkg:LIMIT.real", "gone", "pkg:os.name"])
def test_what_is_not_there_is_missing(root: Path, symbol: str) -> None:
    assert symbol_hash(root, symbol) is None


def test_a_name_that_moved_has_the_hash_of_its_definition(root: Path) -> None:
    assert symbol_hash(root, "pkg:renamed") == symbol_hash(root, "pkg.deep:moved")
    assert symbol_hash(root, "pkg:Inner") == symbol_hash(root, "pkg.deep:Inner")


def test_only_the_changed_symbol_and_what_holds_it_change(root: Path) -> None:
    before = {symbol: symbol_hash(root, symbol) for symbol in SYMBOLS}
    write(root, MODULE.replace("x + 1", "x + 2"), DEEP)
    changed = {symbol for symbol in SYMBOLS if symbol_hash(root, symbol) != before[symbol]}
    assert changed == {"pkg", "pkg:Outer", "pkg:Outer.method"}


def test_comments_and_layout_do_not_count(root: Path) -> None:
    before = [symbol_hash(root, symbol) for symbol in SYMBOLS]
    write(root, MODULE.replace("return x + 1", "return (x\n            + 1)  # one more"), DEEP + "\n\n# end\n")
    assert [symbol_hash(root, symbol) for symbol in SYMBOLS] == before


def test_a_default_or_a_decorator_counts(root: Path) -> None:
    before = symbol_hash(root, "pkg:hidden")
    write(root, MODULE.replace("def hidden(a)", "def hidden(a=1)"), DEEP)
    assert symbol_hash(root, "pkg:hidden") != before
    write(root, MODULE.replace("    def hidden(a)", "    @os.fspath\n    def hidden(a)"), DEEP)
    assert symbol_hash(root, "pkg:hidden") != before


def test_a_name_imported_in_a_circle_is_missing(tmp_path: Path) -> None:
    write(tmp_path, "from pkg.deep import loop\n", "from pkg import loop\n")
    assert symbol_hash(tmp_path, "pkg:loop") is None


def test_an_unopened_wheel_gives_the_same_hashes(root: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "pkg.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in (root / "pkg").iterdir():
            archive.write(file, f"pkg/{file.name}")
    opened = zipfile.Path(wheel)
    assert [symbol_hash(opened, symbol) for symbol in SYMBOLS] == [symbol_hash(root, symbol) for symbol in SYMBOLS]


def test_compare_names_each_kind_of_difference(root: Path) -> None:
    uses = [Use(symbol, "") for symbol in ("pkg:LIMIT", "pkg:Outer", "pkg:gone", "pkg:hidden")]
    same = symbol_hash(root, "pkg:LIMIT")
    assert same is not None
    findings = compare(root, uses, {"pkg:LIMIT": same, "pkg:Outer": "0", "pkg:gone": "0"})
    assert [finding.state for finding in findings] == ["same", "changed", "missing", "unrecorded"]


def test_recording_what_is_not_there_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="must exist"):
        record(root, "9.9", tmp_path / "lock.json")


def test_recording_the_installed_sglang_gives_the_committed_lock(tmp_path: Path) -> None:
    root = installed_root()
    assert root is not None
    record(root, read_lock().version, tmp_path / "lock.json")
    assert read_lock(tmp_path / "lock.json") == read_lock()


def test_the_installed_sglang_is_the_recorded_one() -> None:
    root = installed_root()
    assert root is not None
    assert {finding.use.symbol: finding.state for finding in compare(root)} == {use.symbol: "same" for use in USES}
    require_version()


def test_another_version_is_refused_with_its_cure() -> None:
    with pytest.raises(UpstreamError, match=r"must be 0\.0\.1, .*make check-upstream VERSION="):
        require_version(Lock("0.0.1", {}))


def test_the_command_reports_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert upstream.main([]) == 0
    assert f"{len(USES)} of {len(USES)} symbols as recorded" in capsys.readouterr().out
