"""Reads one YAML file into plain data, refusing what YAML would silently accept."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sparktier.configs.errors import ConfigError, Problem


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that also keeps the places where a mapping names a key twice: YAML lets the last one win."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.duplicates: list[Problem] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping of `node`, noting its repeated keys."""
        first_lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the base class reports it with its line
            line = key_node.start_mark.line + 1
            if key in first_lines:
                rule = f"key {key!r} is written twice in one mapping"
                self.duplicates.append(Problem(f"line {line}", rule, f"first on line {first_lines[key]}", "Keep one."))
            first_lines.setdefault(key, line)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> tuple[dict[Any, Any], list[Problem]]:
    """Return the top-level mapping of the YAML file at `path`, and a problem for every key written twice.

    Raises:
        ConfigError: the file can't be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise _single("file", "must be a readable YAML file", f"{path}: {reason}", "Check the path.") from error
    try:
        loader = _StrictLoader(text)
        data = loader.get_single_data()
    except yaml.YAMLError as error:
        raise _syntax_error(error) from error
    except RecursionError as error:
        raise _single("file", "must not nest this deep", str(path), "Check its brackets and anchors.") from error
    if not isinstance(data, dict):
        kind = "nothing" if data is None else type(data).__name__
        raise _single("file", "must hold a mapping", kind, "Begin with a key and a colon, as configs/demo.yaml does.")
    return data, loader.duplicates


def _syntax_error(error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    place = "file" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
    found = getattr(error, "problem", None) or str(error).splitlines()[0]
    return _single(place, "must be YAML", found, "Check indentation, colons and quotes there.")


def _single(path: str, rule: str, value: str, cure: str) -> ConfigError:
    return ConfigError([Problem(path, rule, value, cure)])
