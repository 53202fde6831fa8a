"""Every HTTP client of ours goes straight to where it is told: proxies in the environment are for the world outside."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cluster", "configs", "drafter", "serving")
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
CALLS = {"ClientSession", "request"}


def calls_that_take_proxies(source: str) -> list[int]:
    """Return the lines that make a client or request of aiohttp without `trust_env=False`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if _of_aiohttp(call.func) and not _refuses(call)]


def _of_aiohttp(called: ast.expr) -> bool:
    owner = called.value if isinstance(called, ast.Attribute) else None
    return isinstance(called, ast.Attribute) and called.attr in CALLS and getattr(owner, "id", "") == "aiohttp"


def _refuses(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    value = given.get("trust_env")
    return isinstance(value, ast.Constant) and value.value is False


def test_no_client_takes_a_proxy_from_the_environment() -> None:
    wrong = {file: calls_that_take_proxies(file.read_text(encoding="utf-8")) for file in FILES}
    assert not {file: lines for file, lines in wrong.items() if lines}


@pytest.mark.parametrize(
    "call", ["aiohttp.request(url)", "aiohttp.ClientSession(trust_env=True)", "aiohttp.ClientSession()"]
)
def test_a_client_that_does_is_found(call: str) -> None:
    assert calls_that_take_proxies(f"import aiohttp\n{call}\n") == [2]


def test_other_libraries_of_this_kind_are_not_used() -> None:
    others = ("requests", "httpx", "urllib.request", "openai")
    lines = [line.split() for file in FILES for line in file.read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if line[:1] in (["import"], ["from"]) and line[1].startswith(others)]
