"""Code in documents: commands are fenced, so that they are run or say what they need; settings and JSON are true."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.plan import Plan
from sparktier.configs.settings.settings import Settings
from support.documents.blocks import ROOT, Block, blocks, blocks_of, documents

LANGUAGES = {"sh", "yaml", "json", "python", "text", "proto"}
# The parser's own page has its examples, which the command line's tests run; the log is history.
FREE = {"docs/cli.md", "docs/log.md", "CHANGELOG.md"}
_COMMAND = re.compile(r"^    (?:sparktier|make|curl|kubectl|helm|python|kill|docker|pytest|grpcurl) ", re.MULTILINE)
NEEDS = (
    "needs a GPU", "needs Kubernetes", "needs Docker", "needs a running deployment", "needs the network",
    "needs a newer", "needs 20 GB", "needs the machine", "needs data", "needs files", "stays in the foreground",
)  # fmt: skip


@pytest.mark.parametrize("file", documents(), ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_are_in_fences(file: Path) -> None:
    if str(file.relative_to(ROOT)) not in FREE:
        assert not _COMMAND.findall(re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL))


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_a_block_is_what_it_says(block: Block) -> None:
    assert block.language in LANGUAGES, "say what it is in: ```sh, yaml, json, python, proto or text"
    if block.language == "json":
        read = json.loads(block.text)
        if "epoch" in read:
            read_message(Plan, block.text)
    elif block.language == "python" and block.mark is None:
        compile(block.text, str(block), "exec")
    elif block.language == "sh" and block.mark is not None:
        assert block.mark.startswith(NEEDS)
    elif block.language == "yaml":
        written = yaml.safe_load(block.text)
        if isinstance(written, dict) and written.keys() <= Settings.model_fields.keys():
            assert not list(unknown(written, Settings))


def unknown(written: Mapping[Any, Any], model: type[BaseModel], at: str = "") -> Iterator[str]:
    """Yield the keys of `written` that `model` doesn't have, at any depth."""
    for key, value in written.items():
        field = model.model_fields.get(str(key))
        if field is None:
            yield f"{at}{key}"
        elif isinstance(value, dict) and (inner := model_of(field.annotation)):
            entries = value.values() if get_origin(field.annotation) is Mapping else [value]
            for entry in entries:
                yield from unknown(entry, inner, f"{at}{key}.")


def model_of(annotation: Any) -> type[BaseModel] | None:
    found = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
    return found[0] if found else None


def test_a_block_in_a_list_and_its_mark_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("1. One:\n\n    ```sh\n    # needs a GPU\n    make gpu-check\n    ```\n\n```yaml\na: 1\n```\n")
    first, second = blocks_of(file)
    assert (first.language, first.mark, first.text) == ("sh", "needs a GPU", "# needs a GPU\nmake gpu-check\n")
    assert (second.language, second.mark, second.line) == ("yaml", None, 8)


def test_a_wrong_key_is_seen() -> None:
    written = {"tiers": {0: {"name": "a", "promise": 1}}, "server": {"prot": 1}}
    assert list(unknown(written, Settings)) == ["tiers.promise", "server.prot"]
