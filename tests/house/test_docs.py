"""Documents: their links lead somewhere, their commands exist, and the configuration reference is that of the code."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sparktier.configs.loading.reference import render
from sparktier.configs.settings.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {"build", "out"}
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def documents() -> list[Path]:
    found = sorted(ROOT.rglob("*.md"))
    parts = {file: file.relative_to(ROOT).parts for file in found}
    return [file for file in found if not any(part.startswith(".") or part in SKIPPED for part in parts[file])]


def short(file: Path) -> str:
    return str(file.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """Return the anchors that a Markdown renderer gives the headings of `text`."""
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(file: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = file.parent / name if name else file
        if not target.is_file() or (anchor and anchor not in anchors(target.read_text())):
            yield link


@pytest.mark.parametrize("file", documents(), ids=short)
def test_links_of_a_document_lead_somewhere(file: Path) -> None:
    assert not list(broken_links(file))


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    good = "# One thing, said\n[b](#one-thing-said) [c](a.md) [d](https://x.y/z)\n```\n[e](none.md)\n```\n"
    file.write_text(good)
    assert not list(broken_links(file))
    # A folder is no page of the site.
    file.write_text(good + "[f](gone.md) [g](a.md#gone) [h](#gone) [i](.)")
    assert list(broken_links(file)) == ["gone.md", "a.md#gone", "#gone", "."]


def test_every_decision_is_in_the_list_of_decisions() -> None:
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text()
    for file in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        title = re.sub(r"^# (\d+: )?", "", file.read_text().splitlines()[0])
        assert f"]({file.name}): " in listed, f"add the line - [{file.stem[:4]}]({file.name}): {title}"


@pytest.mark.parametrize("file", documents(), ids=short)
def test_make_verbs_of_a_document_exist(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"(?:`|^|\$ )make ([a-z-]+)", file.read_text(), flags=re.MULTILINE)
    assert set(named) <= targets


@pytest.fixture(scope="module")
def commands() -> set[str]:
    sparktier = [ROOT / ".venv/bin/sparktier", "--help"]
    shown = subprocess.run(sparktier, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^    ([a-z]+)", shown, flags=re.MULTILINE))


@pytest.mark.parametrize("file", documents(), ids=short)
def test_commands_of_a_document_exist(file: Path, commands: set[str]) -> None:
    named = set(re.findall(r"(?:`|^|\$ |bin/)sparktier ([a-z]+)", file.read_text(), flags=re.MULTILINE))
    assert named <= commands


def test_the_configuration_reference_is_that_of_the_code() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text()
    assert document == render(), "python -m sparktier.configs.loading.reference > docs/configuration.md"


def test_every_key_of_every_section_is_described() -> None:
    document = render()
    for name, field in Settings.model_fields.items():
        model = field.annotation if hasattr(field.annotation, "model_fields") else field.annotation.__args__[1]
        for key, inner in model.model_fields.items():
            path = f"{name}.{key}" if model is field.annotation else f"{name}.<id>.{key}"
            assert f"`{path}`" in document
            assert inner.description


def test_every_page_of_the_site_can_be_found() -> None:
    """Each document is in the navigation; decisions are in their own list instead."""
    nav = set(re.findall(r"([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    files = {short(file) for file in documents()}
    assert nav <= files
    assert {name for name in files - nav if not name.startswith("docs/decisions/0")} == {
        "serving/gateway/console/static/vendor/SOURCES.md"
    }


# What a table of figures has below it, before the next one: what ran, at which commit, on what machine.
_COMMAND = re.compile(r"`(?:make|sparktier|pytest|python) [^`]+`", re.DOTALL)
_COMMIT = re.compile(r"\bcommit\s+[0-9a-f]{7}\b")
_MACHINE = re.compile(r"Xeon|EPYC|H100|machine\s+above|any\s+machine")


@pytest.mark.parametrize("file", ["README.md", "docs/sizing.md"])
def test_each_table_of_figures_says_where_it_comes_from(file: str) -> None:
    tables = list(re.finditer(r"(?:^\|.*\n)+", (ROOT / file).read_text(), flags=re.MULTILINE))
    figures = [table for table in tables if "|--:|--:|" in table[0]]
    assert figures
    for table in figures:
        below = table.string[table.end() :].split("\n#")[0].split("\n|")[0]
        for what in (_COMMAND, _COMMIT, _MACHINE):
            assert what.search(below), f"{file}: {what.pattern} below {table[0].splitlines()[0]}"


def test_the_version_is_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "helm" / "sparktier" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    for file in ("docs/quickstart.md", "docs/kubernetes.md", "helm/sparktier/README.md", "CHANGELOG.md"):
        text = (ROOT / file).read_text()
        assert set(re.findall(r"sparktier[:-](\d+\.\d+\.\d+)", text)) <= {version}, file
    assert version in (ROOT / "CHANGELOG.md").read_text()
