"""The JSON schema of the chart's values: `config` is a configuration file, the rest the chart's own.

Written to a file by `python -m sparktier.configs.chart.schema > helm/sparktier/values.schema.json`.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from sparktier.configs.chart.values import ChartValues
from sparktier.configs.settings.settings import Settings

_TIER_ID = "^([0-9]|[1-5][0-9]|6[0-3])$"
_NAMED = ("properties", "$defs")


def values_schema() -> dict[str, Any]:
    """Return the schema that Helm applies to the merged values."""
    schema, config = ChartValues.model_json_schema(), Settings.model_json_schema()
    definitions = {**schema.pop("$defs"), **config.pop("$defs")}
    # Helm gives a map's keys as text, which pydantic's schema says nothing about.
    config["properties"]["tiers"]["propertyNames"] = {"pattern": _TIER_ID}
    schema["properties"] = {"config": config, "global": {"type": "object"}, **schema["properties"]}
    schema["required"] = ["config", *schema["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the chart sparktier",
        **_plain(schema),
        "$defs": {name: _plain(definition) for name, definition in sorted(definitions.items())},
    }


def _plain(schema: Any) -> Any:
    """Return `schema` without titles, which repeat the keys, and without defaults, which Helm does not apply."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: {name: _plain(item) for name, item in value.items()} if key in _NAMED else _plain(value)
        for key, value in schema.items()
        if key not in ("title", "default")
    }


def render() -> str:
    """Return the text of `values.schema.json`."""
    return json.dumps(values_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
