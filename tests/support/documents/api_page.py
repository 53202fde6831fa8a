"""Writes the reference of the API: `python -m support.documents.api_page > ../docs/api.md`.

Fields of HTTP come from the schemas that requests are checked against, gRPC from its proto, messages between parts from
their models; a test compares the document with this output.
"""

import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from pydantic import BaseModel

from sparktier.configs.contracts.decision import Decision
from sparktier.configs.contracts.ended import EndedPage
from sparktier.configs.contracts.latch import LatchOrder
from sparktier.configs.contracts.order import ReplicaOrder
from sparktier.configs.contracts.plan import Plan
from sparktier.configs.contracts.room import Room
from sparktier.configs.contracts.signals import Signals
from sparktier.serving.gateway.http.openapi import document
from sparktier.serving.gateway.requests.rules import CHAT

_HEAD = """# API

What clients ask for over HTTP and gRPC, and the messages between parts. Who may reach which port is in
[security](security.md), what each field means here in [requests](requests.md), its bounds in
[request bounds](request-bounds.md), errors in [errors](errors.md). A running server has the whole OpenAPI document at
`/openapi.json`.

This page is written by `python -m support.documents.api_page > ../docs/api.md` in `tests/`.
"""
_MESSAGES: tuple[type[BaseModel], ...] = (Signals, Plan, Room, EndedPage, LatchOrder, ReplicaOrder, Decision)
_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "minLength": "least length",
    "maxLength": "most length",
    "minItems": "least entries",
    "maxItems": "most entries",
}


def render() -> str:
    """Return the document, in Markdown."""
    return "\n".join([_HEAD, *_http(), "", *_grpc(), "", *_messages()]) + "\n"


def _http() -> Iterator[str]:
    described = document("MODEL")
    yield from ("## HTTP", "", "| route | does | answers |", "|---|---|---|")
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            yield f"| `{method.upper()} {path}` | {operation['summary']} | {', '.join(operation['responses'])} |"
    for path, operations in described["paths"].items():
        if "post" in operations:
            schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            yield from ("", f"### POST {path}", "", *_fields(schema))
    shown = {name: schema for name, schema in described["components"]["schemas"].items() if "properties" in schema}
    for name, schema in shown.items():
        yield from ("", f"### {name}", "", *_fields(schema))
    assert CHAT in described["paths"]


def _grpc() -> Iterator[str]:
    proto = resources.files("sparktier.serving.gateway.proto.sparktier.v1").joinpath("inference.proto").read_text()
    yield from ("## gRPC", "", "`serving/gateway/proto/sparktier/v1/inference.proto`:", "", "```proto")
    yield proto.rstrip("\n")
    yield "```"


def _messages() -> Iterator[str]:
    yield from ("## Messages between parts", "", "JSON; unknown keys and another `schema_version` are refused.")
    seen: set[str] = set()
    for model in _MESSAGES:
        schema = model.model_json_schema()
        parts = {model.__name__: schema, **schema.get("$defs", {})}
        for name, part in parts.items():
            if name not in seen and "properties" in part:
                seen.add(name)
                yield from ("", f"### {name}", "", _text(part), "", *_fields(part))


def _text(schema: Mapping[str, Any]) -> str:
    return " ".join(str(schema.get("description", "")).split())


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    required = set(schema.get("required", ()))
    yield from ("| field | values | default |", "|---|---|---|")
    for name, field in schema["properties"].items():
        default = "required" if name in required else _default(field)
        yield f"| `{name}` | {_kind(field)} | {default} |"


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return ""
    value = field["default"]
    return f"`{str(value).lower() if isinstance(value, bool) or value is None else value}`".replace("`none`", "`null`")


def _kind(field: Mapping[str, Any]) -> str:
    """Return the values of a field in words; a field without a schema is passed on, or read by the gateway."""
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[-1]
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in field:
            return " or ".join(dict.fromkeys(_kind(each) for each in field[key]))
    kind = {"array": "list", "string": "text", "integer": "whole number", "boolean": "true or false"}.get(
        str(field.get("type", "any")), str(field.get("type", "see requests"))
    )
    if kind == "list" and "items" in field:
        kind = f"list of {_kind(field['items'])}"
    if isinstance(field.get("additionalProperties"), Mapping):
        kind = f"object of {_kind(field['additionalProperties'])}"
    return ", ".join([kind, *(f"{words} {field[key]}" for key, words in _LIMITS.items() if key in field)])


if __name__ == "__main__":
    sys.stdout.write(render())
