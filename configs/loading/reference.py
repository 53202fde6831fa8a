"""Writes the reference of the configuration file: `python -m sparktier.configs.loading.reference`.

The models are the only place where a key is described; a test compares the document with this output.
"""

import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sparktier.configs.settings.settings import Settings

_HEAD = """# Configuration file

One YAML file describes a deployment: `sparktier up CONFIG`. Ready ones are in `configs/` and `configs/deployments/`. A
wrong file is refused with all of its problems at once, each with where it is, the rule, what was found and the cure.
`--set replicas.count=2` replaces one value.

`sparktier doctor CONFIG` checks this machine for a file. `sparktier doctor --plan CONFIG` shows what it would do,
without a GPU; for models whose sizes are not in `configs/architectures/`, give their `config.json` with
`--model-config`.

This page is written by `python -m sparktier.configs.loading.reference > docs/configuration.md`.
"""
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def render() -> str:
    """Return the document, in Markdown."""
    return _HEAD + "".join(_section(name, field) for name, field in Settings.model_fields.items())


def _section(name: str, field: FieldInfo) -> str:
    model = _model_of(field.annotation)
    is_map = get_origin(field.annotation) is Mapping
    path = f"{name}.<id>" if is_map else name
    lines = ["", f"## {name}", "", field.description or "", "", "| key | values | default | |", "|---|---|---|---|"]
    lines += [_row(path, key, inner) for key, inner in model.model_fields.items()]
    return "\n".join(lines) + "\n"


def _row(path: str, key: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{_yaml(_default(field))}`"
    values = ", ".join(part for part in (_type(field.annotation), *_bounds(field)) if part)
    return f"| `{path}.{key}` | {values} | {default} | {field.description} |"


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default


def _yaml(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _type(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        inner = [_type(part) for part in get_args(annotation) if part is not type(None)]
        return ", ".join([*inner, "`null`"])
    if origin is Sequence:
        return f"list of {_type(get_args(annotation)[0])}s"
    return "mapping" if origin is Mapping else _NAMES[annotation]


def _bounds(field: FieldInfo) -> Iterator[str]:
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    for limit in field.metadata:
        for attribute, text in words.items():
            if (bound := getattr(limit, attribute, None)) is not None:
                yield f"{text} {bound:g}" if isinstance(bound, float) else f"{text} {bound}"


def _model_of(annotation: Any) -> type[BaseModel]:
    """Return the model that `annotation` is or, for a mapping, that its values are."""
    candidates = (annotation, *get_args(annotation))
    return next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))


if __name__ == "__main__":
    sys.stdout.write(render())
