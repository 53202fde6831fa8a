"""The OpenAPI document of the public listener, made from the schemas that requests are checked against. Pure."""

from collections.abc import Mapping
from typing import Any

from sparktier.serving.gateway.requests.rules import REFUSED, SCHEMAS, fields_of
from sparktier.serving.gateway.tier_resolution import TIER_HEADER, TPOT_HEADER

PATH = "/openapi.json"
_REFERENCE = "#/components/schemas/{model}"
# pydantic's names for bounds that it finds behind a conversion.
_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
_TITLES = {"/v1/chat/completions": "Answer a conversation", "/v1/completions": "Continue a text, or several"}
_STATUSES = {
    "400": "The request breaks a rule, or asks for what is not served.",
    "401": "A key is needed and missing, or unknown.",
    "403": "The tenant may not use this tier.",
    "404": "There is no such model.",
    "408": "The body took too long to arrive.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "429": "No room; `Retry-After` says when to come again.",
    "500": "The engine ended this request, which says why.",
    "502": "The replica was lost before the answer was whole.",
    "503": "No replica is ready, or the server stops.",
    "504": "The request took longer than the server allows.",
}


def document(model: str) -> dict[str, Any]:
    """Return the document of a server of `model`."""
    schemas: dict[str, Any] = {"Error": _error()}
    paths: dict[str, Any] = {path: {"post": _generation(path, schemas)} for path in SCHEMAS}
    models = {"200": _json("The model that is served.", {"type": "object"}), **_errors("401")}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}, "example": model}
    paths["/v1/models"] = {"get": _operation("List the model", models)}
    paths["/v1/models/{model}"] = {
        "get": _operation("Describe the model", models | _errors("404")) | {"parameters": [name]}
    }
    state = {"schema": {"type": "object"}}
    paths["/healthz"] = {"get": _operation("Whether the server runs", {"200": _json("It does.", **state)})}
    ready = {"200": _json("One is.", **state), "503": _json("None is.", **state)}
    paths["/readyz"] = {"get": _operation("Whether a replica is ready", ready)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sparktier", "version": "v1"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _generation(path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the operation of a route that reaches a replica; what its schema refers to goes into `schemas`."""
    schema = _plain(SCHEMAS[path].model_json_schema(ref_template=_REFERENCE))
    schemas |= schema.pop("$defs", {})
    others = sorted(fields_of(path) - REFUSED.keys() - schema["properties"].keys())
    schema["properties"] |= {name: {} for name in others}
    schema["additionalProperties"] = False
    whole = {"schema": {"type": "object"}}
    events = {"schema": {"type": "string", "description": "Events `data: JSON`, the last one `data: [DONE]`."}}
    answer = {"description": "The answer.", "content": {"application/json": whole, "text/event-stream": events}}
    headers = [{"name": name, "in": "header", "schema": {"type": "string"}} for name in (TIER_HEADER, TPOT_HEADER)]
    return _operation(_TITLES[path], {"200": answer, **_errors(*_STATUSES)}) | {
        "security": [{}, {"key": []}],
        "parameters": headers,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
    }


def _operation(summary: str, responses: Mapping[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": dict(responses)}


def _json(description: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: str) -> dict[str, Any]:
    return {status: _json(_STATUSES[status], {"$ref": _REFERENCE.format(model="Error")}) for status in statuses}


def _error() -> dict[str, Any]:
    text, maybe = {"type": "string"}, {"type": ["string", "null"]}
    fields = {"message": text, "type": text, "param": maybe, "code": maybe}
    error = {"type": "object", "properties": fields, "required": [*fields]}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _plain(schema: Any) -> Any:
    """Return `schema` with the bounds that are JSON Schema's."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {_BOUNDS.get(name, name): _plain(value) for name, value in schema.items()}
