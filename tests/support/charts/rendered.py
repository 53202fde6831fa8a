"""Renders the Helm chart and reads what it makes, without a cluster."""

import copy
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "sparktier"
EXAMPLES = sorted((ROOT / "helm" / "examples").glob("*.yaml"))
RELEASE, NAMESPACE = "trial", "serving"

Document = dict[str, Any]


@functools.cache
def _chart() -> Chart:
    return Chart.load(CHART)


def values_of(example: Path) -> Document:
    found: Document = yaml.safe_load(example.read_text())
    return found


def render(values: Mapping[str, Any]) -> dict[str, str]:
    """Return each template's text for `values`. Raises HelmError when the chart refuses them."""
    return _chart().render(dict(values), name=RELEASE, namespace=NAMESPACE)


def documents(values: Mapping[str, Any]) -> list[Document]:
    """Return the objects that the chart makes of `values`."""
    texts = [text for name, text in render(values).items() if name.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def changed(values: Mapping[str, Any], dotted: str, value: Any) -> Document:
    """Return a copy of `values` with another value at `dotted`."""
    result = copy.deepcopy(dict(values))
    *parents, last = dotted.split(".")
    here = result
    for part in parents:
        here = here.setdefault(_key(here, part), {})
    here[_key(here, last)] = value
    return result


def _key(holder: Mapping[Any, Any], part: str) -> Any:
    return int(part) if part.isdecimal() and (int(part) in holder or not holder) else part


def pod_templates(document: Document) -> Iterator[tuple[str, Document]]:
    """Yield the pod templates of one object, each with a name."""
    kind, name = document["kind"], document["metadata"]["name"]
    if kind == "Pod":
        yield name, {"metadata": document["metadata"], "spec": document["spec"]}
    elif kind == "RayCluster":
        yield f"{name} head", document["spec"]["headGroupSpec"]["template"]
        for group in document["spec"].get("workerGroupSpecs", ()):
            yield f"{name} {group['groupName']}", group["template"]
    elif "template" in document.get("spec", {}):
        yield name, document["spec"]["template"]


def containers(template: Document) -> list[Document]:
    """Return all containers of a pod template."""
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]
