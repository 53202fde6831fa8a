"""values.schema.json is that of the code, and the chart's defaults and examples fit it."""

import json

import yaml

from sparktier.configs.chart.schema import render, values_schema
from sparktier.configs.chart.values import ChartValues
from support.charts.rendered import CHART


def test_the_schema_is_that_of_the_code() -> None:
    written = (CHART / "values.schema.json").read_text()
    assert written == render(), "python -m sparktier.configs.chart.schema > helm/sparktier/values.schema.json"


def test_every_key_has_a_default_and_a_description() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert defaults.pop("config") == {}
    ChartValues.model_validate_json(json.dumps(defaults))
    for name, definition in values_schema()["$defs"].items():
        for key, schema in definition.get("properties", {}).items():
            assert "description" in schema or "$ref" in schema, f"{name}.{key}"
