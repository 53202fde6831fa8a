"""Reads which of our files imports which, lazy imports included, and folds that to the rooms of a folder."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

TOP = ("serving", "drafter", "cluster", "kernels", "configs")
Edges = Mapping[Path, frozenset[Path]]


def import_graph(root: Path) -> Edges:
    """Return, for each Python file below the top folders of `root`, the files it imports; paths are relative."""
    files = [file.relative_to(root) for top in TOP for file in sorted((root / top).rglob("*.py"))]
    modules = {_dotted(file): file for file in files}
    return {file: frozenset(_imported((root / file).read_text(), modules)) - {file} for file in files}


def rooms_of(edges: Edges, folder: Path) -> dict[str, set[str]]:
    """Return the rooms of `folder` (files without suffix, subfolders) and which others of them each imports.

    `__init__.py` is no room: it is there for those outside.
    """
    rooms: dict[str, set[str]] = {}
    for file, imported in edges.items():
        if folder in file.parents:
            room = _room(file, folder)
            others = {_room(other, folder) for other in imported if folder in other.parents}
            rooms.setdefault(room, set()).update(others - {room, "__init__"})
    rooms.pop("__init__", None)
    return rooms


def not_downward(rooms: Mapping[str, set[str]], floors: list[str]) -> list[str]:
    """Return each import that doesn't go down: the importer must be listed above what it imports."""
    place = {room: number for number, room in enumerate(floors)}
    return [f"{room} imports {other}" for room in rooms for other in sorted(rooms[room]) if place[room] >= place[other]]


def _room(file: Path, folder: Path) -> str:
    return file.relative_to(folder).parts[0].removesuffix(".py")


def _dotted(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(("sparktier", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _imported(source: str, modules: Mapping[str, Path]) -> Iterator[Path]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (modules[alias.name] for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found = name if name in modules else node.module
                if found in modules:
                    yield modules[found]
