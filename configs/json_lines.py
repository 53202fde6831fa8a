"""Reads files of one JSON object a line; each error names the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparktier.configs.errors import ArtifactError

_SHOWN_CHARS = 60


def read_lines(path: Path, what: str) -> list[str]:
    """Return the lines of a text file; `what` names the expected content in errors.

    Lines end at line feeds alone: JSON allows U+2028, U+0085 and the like unescaped inside strings, where
    `str.splitlines` would cut. A byte order mark at the start is dropped.

    Raises:
        ArtifactError: the file can't be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise ArtifactError(f"{path}: must be a readable file of {what} (found {error}). Check the path.") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{path}: must be a file of {what} in UTF-8 (found {error}). Convert it, for example with iconv."
        ) from None


def objects_in(lines: list[str], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the object of every line that is not blank, and where it is (`file:line`).

    Raises:
        ArtifactError: a line holds something else.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}:{number}", _object(line, f"{path}:{number}")


def _object(line: str, where: str) -> dict[str, Any]:
    is_array = line.lstrip().startswith("[")
    cure = (
        "Make lines of a JSON array with `jq -c '.[]'`." if is_array else "Write one object a line, or delete this one."
    )
    try:
        found = json.loads(line)
    except RecursionError:
        raise ArtifactError(f"{where}: a line must not nest this deep (found {shown(line)}). {cure}") from None
    except ValueError as error:
        raise ArtifactError(f"{where}: a line must be JSON (found {shown(line)}: {error}). {cure}") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{where}: a line must be a JSON object (found {shown(line)}). {cure}")
    return found


def require_text(text: str, where: str) -> str:
    """Return `text` unless it holds half of a surrogate pair, which no tokenizer and no file takes.

    Raises:
        ArtifactError: it does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x} at character {error.start}"
        raise ArtifactError(
            f"{where}: text must be whole characters (found half of a surrogate pair, {half}). Mend or delete the line."
        ) from None
    return text


def shown(value: object) -> str:
    """Return the beginning of `value` as one line of ASCII."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
