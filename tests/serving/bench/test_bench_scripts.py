"""What the benchmark scripts take from the packages is there: they don't run between two releases of figures."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def top_level_names(source: str) -> Iterator[str]:
    """Yield what a module that is `source` binds: read, not imported, since SGLang's parts need a platform first."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        else:
            yield from (name.id for name in ast.walk(node) if isinstance(name, ast.Name))


@pytest.mark.parametrize("script", sorted(BENCH.glob("*.py")), ids=lambda script: script.name)
def test_all_that_a_script_takes_from_us_is_there(script: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if node.module and node.module.startswith("sparktier."):
            spec = importlib.util.find_spec(node.module)
            assert spec is not None, node.module
            known = set(top_level_names(Path(spec.origin).read_text())) if spec.origin else set()
            for alias in node.names:
                assert alias.name in known or importlib.util.find_spec(f"{node.module}.{alias.name}"), alias.name
