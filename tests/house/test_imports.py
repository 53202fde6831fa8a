"""Who may import whom: serving -> drafter -> kernels, serving -> cluster, all -> configs, and never back."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "configs": {"configs"},
    "kernels": {"kernels", "configs"},
    "drafter": {"drafter", "kernels", "configs"},
    "cluster": {"cluster", "configs"},
    "serving": {"serving", "cluster", "drafter", "kernels", "configs"},
}
HTTP = {"fastapi", "httpx", "starlette", "uvicorn"}
HTTP_CLIENTS = {"aiohttp", "httpx", "requests", "urllib.request"}
# What a folder knows nothing of. A file is exempt where the design names it.
FORBIDDEN = {
    "configs": {"ray", "sglang", "torch", "transformers", *HTTP},
    "kernels": {"ray", "sglang", *HTTP},
    "drafter": {"ray", "sglang", *HTTP},
    "cluster": {"ray", "sglang", "torch", *HTTP},
    "serving": {"sglang"},
}
EXEMPT = {("cluster", "placement.py"): {"ray"}}
FILES = [file for folder in ALLOWED for file in sorted((ROOT / folder).rglob("*.py"))]


def imports(source: str) -> Iterator[str]:
    """Yield the dotted name of everything `source` imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "sparktier")


def wrong_imports(folder: str, file: str, source: str) -> set[str]:
    """Return what `file`, a path inside `folder`, imports and may not."""
    in_engine = folder == "serving" and file.startswith("engine/")
    forbidden = FORBIDDEN[folder] - EXEMPT.get((folder, file), set()) - ({"sglang"} if in_engine else set())
    if not (folder == "serving" and file.startswith("clients/")):
        forbidden |= HTTP_CLIENTS
    wrong = set()
    for name in imports(source):
        parts = name.split(".")
        ours = parts[0] == "sparktier" and len(parts) > 1
        if (
            (ours and parts[1] not in ALLOWED[folder])
            or parts[0] in forbidden
            or name in forbidden
            or parts[0] in ALLOWED
            or name.startswith(".")
        ):
            wrong.add(name)
    return wrong


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_only_what_it_may_know(file: Path) -> None:
    folder, *rest = file.relative_to(ROOT).parts
    assert not wrong_imports(folder, "/".join(rest), file.read_text())


@pytest.mark.parametrize(
    ("folder", "file", "source", "wrong"),
    [
        ("configs", "a.py", "import torch", {"torch"}),
        ("configs", "a.py", "from sparktier.cluster import x", {"sparktier.cluster"}),
        ("configs", "a.py", "from sparktier import serving", {"sparktier.serving"}),
        ("kernels", "a.py", "def f():\n    import sglang.srt", {"sglang.srt"}),
        ("drafter", "a.py", "import sparktier.serving.cli.main", {"sparktier.serving.cli.main"}),
        ("cluster", "policy.py", "import ray", {"ray"}),
        ("cluster", "placement.py", "import ray", set()),
        ("serving", "up.py", "import sglang", {"sglang"}),
        ("serving", "engine/a.py", "import sglang", set()),
        ("serving", "up.py", "import serving.front\nfrom configs.errors import X", {"serving.front", "configs.errors"}),
        ("serving", "up.py", "from . import front", {"."}),
        ("kernels", "a.py", "import kernels", {"kernels"}),
        ("serving", "clients/replica.py", "import aiohttp\nfrom sparktier.configs import errors", set()),
        ("serving", "gateway/http.py", "import httpx", {"httpx"}),
        ("serving", "engine/launch.py", "from urllib.request import urlopen", {"urllib.request"}),
        ("cluster", "a.py", "import aiohttp", {"aiohttp"}),
    ],
)
def test_the_check_sees_what_is_wrong(folder: str, file: str, source: str, wrong: set[str]) -> None:
    assert wrong_imports(folder, file, source) == wrong


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_tests_import_our_packages_by_their_full_name(file: Path) -> None:
    assert not [name for name in imports(file.read_text()) if name.split(".")[0] in ALLOWED]


def test_our_kernels_never_shadow_the_package_that_sglang_needs() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert str(ROOT / "kernels") not in list(importlib.import_module("kernels").__path__)
