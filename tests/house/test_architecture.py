"""docs/architecture.md is true: its picture is that of the imports, and its roads lead from function to function."""

import ast
import re
from pathlib import Path

import pytest

from support.draw_rooms import picture

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "architecture.md"
_STEP = re.compile(r"^    (\S+\.py):(\S+)(?: +by (\S+))?$", re.MULTILINE)


def roads(text: str) -> list[list[tuple[str, str, str]]]:
    """Return the steps (file, name, key) of each indented block."""
    blocks = re.split(r"\n(?!    )", text)
    return [steps for block in blocks if (steps := _STEP.findall(block))]


def source_of(file: str, name: str) -> str:
    """Return the source of a function or class. Raises LookupError where there is none."""
    text = (ROOT / file).read_text()
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = [child for child in ast.iter_child_nodes(node) if isinstance(child, named) and child.name == part]
        if not found:
            raise LookupError(f"{file}:{name}")
        node = found[0]
    return ast.get_source_segment(text, node) or ""


def leads(step: tuple[str, str, str], following: tuple[str, str, str]) -> bool:
    """Whether a step names the following one, or its folder the key by which that is reached."""
    file, name, key = step
    if key:
        return key in _package_text(file)
    return re.search(rf"\b{following[1].split('.')[-1]}\b", source_of(file, name)) is not None


def _package_text(file: str) -> str:
    """Return the text of all files in the folder of `file` and below."""
    return "".join(path.read_text() for path in sorted((ROOT / file).parent.rglob("*.py")))


@pytest.fixture(scope="module")
def steps() -> list[list[tuple[str, str, str]]]:
    return roads(DOCUMENT.read_text())


def test_there_are_two_roads_and_each_step_exists(steps: list[list[tuple[str, str, str]]]) -> None:
    assert len(steps) == 2
    for file, name, _ in (step for road in steps for step in road):
        assert source_of(file, name)


def test_each_step_is_called_or_named_by_one_above_it(steps: list[list[tuple[str, str, str]]]) -> None:
    for road in steps:
        for number, step in enumerate(road[1:], start=1):
            # A key leads to the next step alone.
            above = [other for other in road[:number] if not other[2]] + [road[number - 1]]
            assert any(leads(other, step) for other in above), f"no step leads to {step}"


def test_a_road_that_breaks_is_seen() -> None:
    start = ("serving/gateway/core/gateway.py", "Gateway._admitted", "")
    assert leads(start, ("serving/gateway/requests/rules.py", "checked", ""))
    assert not leads(start, ("serving/gateway/requests/rules.py", "unheard_of", ""))
    with pytest.raises(LookupError):
        source_of("serving/gateway/http/front.py", "front.gone")


def test_the_picture_is_that_of_the_imports() -> None:
    drawn = (ROOT / "docs" / "images" / "rooms.svg").read_text()
    assert drawn == picture(), "python tests/support/draw_rooms.py > docs/images/rooms.svg"


def test_the_document_is_short() -> None:
    assert len(DOCUMENT.read_text().splitlines()) < 60
