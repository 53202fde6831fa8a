"""Which SGLang symbols a source file names.

Found are: imports; attributes of an imported SGLang module (`module.Name`, read or replaced); attributes of an imported
class (`Class.method`, as one overrides or calls); and strings that are dotted SGLang names, as hooks take.
"""

import ast
import re
from collections.abc import Callable, Iterator

_DOTTED = re.compile(r"sglang(\.\w+)+(:[\w.]+)?")


def sglang_symbols(source: str, is_module: Callable[[str], bool]) -> set[str]:
    """Return the symbols, in the manifest's form `package.module:Name.attribute`, that `source` names."""
    tree = ast.parse(source)
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        bound.update(_bindings(node, is_module))
    found = {symbol for symbol in bound.values() if ":" in symbol}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (symbol := _attribute(node, bound)):
            found.add(symbol)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            found.add(_with_colon(node.value, is_module))
    return found


def _bindings(node: ast.AST, is_module: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.ImportFrom) and _ours(node.module) and not node.level:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield alias.asname or alias.name, inner if is_module(inner) else f"{node.module}:{alias.name}"
    if isinstance(node, ast.Import):
        for alias in node.names:
            if _ours(alias.name):
                yield alias.asname or alias.name, alias.name


def _attribute(node: ast.Attribute, bound: dict[str, str]) -> str | None:
    names = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        names.append(value.attr)
        value = value.value
    if not isinstance(value, ast.Name) or value.id not in bound:
        return None
    base = bound[value.id]
    return f"{base}{'.' if ':' in base else ':'}{'.'.join(reversed(names))}"


def _with_colon(dotted: str, is_module: Callable[[str], bool]) -> str:
    if ":" in dotted or is_module(dotted):
        return dotted
    parts = dotted.split(".")
    cut = next((n for n in range(len(parts) - 1, 0, -1) if is_module(".".join(parts[:n]))), 1)
    return f"{'.'.join(parts[:cut])}:{'.'.join(parts[cut:])}"


def _ours(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == "sglang"
