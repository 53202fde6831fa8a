"""Finds a symbol of SGLang in its source files and hashes it, without importing SGLang.

Works on an installed package and on an unopened wheel alike.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

_MOST_REEXPORTS = 5


def installed_root() -> Traversable | None:
    """Return the folder that holds the installed `sglang` package, or None."""
    spec = importlib.util.find_spec("sglang")
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))).parent if locations else None


def symbol_hash(root: Traversable, symbol: str) -> str | None:
    """Return the sha256 of `symbol` below `root`, or None if it is not there.

    `symbol` is `package.module` or `package.module:Name.attribute`. A name that the module only imports is followed to
    where it is defined; of one defined in several branches, all count. Hashed is the normalised syntax tree, so
    comments and layout don't.
    """
    module, _, name = symbol.partition(":")
    nodes = _find(root, module, name.split(".") if name else [], _MOST_REEXPORTS)
    return hashlib.sha256("\n".join(map(ast.unparse, nodes)).encode()).hexdigest() if nodes else None


def is_module(root: Traversable, module: str) -> bool:
    """Return whether `module` is a Python file or package below `root`."""
    return _file(root, module) is not None


def _find(root: Traversable, module: str, names: Sequence[str], hops: int) -> list[ast.AST]:
    """Return every definition of `names` in `module`, following up to `hops` imports."""
    file = _file(root, module)
    if file is None or hops < 0:
        return []
    found: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    elsewhere: list[ast.AST] = []
    for depth, name in enumerate(names):
        inner = [node for outer in found for node in _statements(outer) if _defines(node, name)]
        for node in inner:
            if isinstance(node, ast.ImportFrom):
                origin, original = _origin(node, name, module, is_package=file.name == "__init__.py")
                elsewhere += _follow(root, origin, [original, *names[depth + 1 :]], hops - 1)
        found = [node for node in inner if not isinstance(node, ast.ImportFrom)]
    return found + elsewhere


def _follow(root: Traversable, module: str, names: Sequence[str], hops: int) -> list[ast.AST]:
    """Return the definitions of `names` in `module`, whose first may be a module itself."""
    inner = f"{module}.{names[0]}"
    return _find(root, inner, names[1:], hops) if is_module(root, inner) else _find(root, module, names, hops)


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements of a module or class body, looking into if, try and with."""
    own = [*getattr(node, "body", []), *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
    own += [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
    for statement in own:
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _statements(statement)
        else:
            yield statement


def _defines(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name == name
    if isinstance(node, ast.ImportFrom):
        return any((alias.asname or alias.name) == name for alias in node.names)
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _origin(node: ast.ImportFrom, name: str, module: str, *, is_package: bool) -> tuple[str, str]:
    """Return the module and the name there that `node`, a statement of `module`, imports as `name`."""
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    if not node.level:
        return node.module or "", original
    parents = module.split(".")
    base = parents[: len(parents) - node.level + int(is_package)]
    return ".".join([*base, *([node.module] if node.module else [])]), original


def _file(root: Traversable, module: str) -> Traversable | None:
    folder = root
    *parents, last = module.split(".")
    for part in parents:
        folder = folder / part
    for candidate in (folder / f"{last}.py", folder / last / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
