"""The reference pages have every command, route, metric, error code and alert of the code, and nothing else."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sparktier.configs import errors
from sparktier.serving.cli.main import _parser
from sparktier.serving.controller.routes import _exposition
from sparktier.serving.gateway import engine_refusals
from sparktier.serving.gateway.telemetry.metrics import GatewayMetrics
from support.charts.prometheus import rules_of
from support.charts.rendered import EXAMPLES, values_of
from support.documents import api_page, cli_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GATEWAY = ROOT / "serving" / "gateway"
# What the controller, the engine and the gateway mount, as decorators or Starlette's routes.
ROUTED = ("serving/controller/routes.py", "serving/engine", "serving/gateway/http", "serving/gateway/console")
_ROUTE_MAKERS = {"Route", "Mount", "get", "post", "api_route", "add_api_route"}


def section(page: str, title: str) -> str:
    return (DOCS / page).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE)


def test_the_command_line_s_page_is_that_of_the_parser() -> None:
    assert (DOCS / "cli.md").read_text() == cli_page.render(), cli_page.__doc__


def test_every_verb_has_its_section() -> None:
    titles = re.findall(r"^## (.+)$", (DOCS / "cli.md").read_text(), flags=re.MULTILINE)
    verbs = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    assert {title.split()[0] for title in titles} == set(verbs)
    assert {"bench speculation", "bench serve"} <= set(titles)


def test_the_api_s_page_is_that_of_schemas_and_proto() -> None:
    assert (DOCS / "api.md").read_text() == api_page.render(), api_page.__doc__


def test_every_error_code_has_its_row() -> None:
    listed = first_cells(section("errors.md", "Codes"))
    assert len(listed) == len(set(listed))
    assert set(listed) == codes(GATEWAY)


def codes(folder: Path) -> set[str]:
    """Return every `code` of the refusals below `folder`: constants, and names that stand for one in the same file."""
    found = {code for _, _, code in engine_refusals._KNOWN}
    for file in folder.rglob("*.py"):
        tree = ast.parse(file.read_text())
        named = dict(constants(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (kind := made_by(node.func)) in ("Refused", "Refusal"):
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                found |= set(texts(given + (node.args[1:2] if kind == "Refusal" else []), named))
            elif isinstance(node, ast.Assign) and any(target.id == "code" for target in names(node.targets)):
                found |= set(texts([node.value], named))
    return found | {engine_refusals._OTHER}


def constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the names that `tree` gives to texts, one by one or several at once."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            for name, value in zip(names(node.targets), values, strict=False):
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield name.id, value.value


def names(targets: list[ast.expr]) -> list[ast.Name]:
    flat = [inner for target in targets for inner in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [target for target in flat if isinstance(target, ast.Name)]


def texts(values: list[ast.expr], named: dict[str, str]) -> Iterator[str]:
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value
        elif isinstance(value, ast.Name) and value.id in named:
            yield named[value.id]
        elif isinstance(value, ast.IfExp):
            yield from texts([value.body, value.orelse], named)


def test_a_code_is_found_in_each_form(tmp_path: Path) -> None:
    source = '_A, B = "a", "b"\nRefused("x", code=_A)\nRefusal("x", B)\nRefused("x", code="c" if y else "d")\n'
    (tmp_path / "one.py").write_text(source)
    assert {"a", "b", "c", "d"} <= codes(tmp_path)


def test_every_error_class_has_its_row() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SparktierError)
    }
    assert set(first_cells(section("errors.md", "In the code"))) == classes


def test_every_route_of_each_port_is_in_the_security_model() -> None:
    listed = set(re.findall(r"`(?:GET |POST )?(/[^`\s]*)`", section("security.md", "Routes of each port")))
    found = set(routes())
    assert len(found) > 20
    assert found <= listed, found - listed
    assert {path for path in listed if path.startswith("/sparktier")} <= found


def routes() -> Iterator[str]:
    for place in ROUTED:
        files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
        for file in files:
            tree = ast.parse(file.read_text())
            named = dict(constants(tree))
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and node.args and made_by(node.func) in _ROUTE_MAKERS:
                    yield from (text.replace(":path", "") for text in texts(node.args[:1], named) if text[:1] == "/")


def made_by(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def listed_metrics(prefix: str) -> dict[str, tuple[str, set[str]]]:
    """Return kind and labels of each metric of docs/metrics.md whose name begins with `prefix`."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", (DOCS / "metrics.md").read_text(), flags=re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows if name.startswith(prefix)}


def exported_metrics(page: str) -> dict[str, tuple[str, set[str]]]:
    """Return kind and labels of each metric of Prometheus' text `page`, counters with their ending."""
    return {
        family.name + "_total" * (family.type == "counter"): (family.type, set(sample.labels) - {"le"})
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if not sample.name.endswith("_created") and not family.name.endswith("_created")
    }


def test_the_gateway_s_metrics_are_listed() -> None:
    metrics = GatewayMetrics()
    metrics.began()
    metrics.ended(route="a", status=200, tier="b", first_token_ms=1.0, user_tok_s=1.0, asked_tier="c")
    assert exported_metrics(metrics.exposition()) == listed_metrics("sparktier_gateway_")


def test_the_controller_s_metrics_are_listed() -> None:
    controller = SimpleNamespace(
        standing="leading", epoch=2, plan=None, evaluations=1, took_ms=1.0, states={"replica-0": "steered"}
    )
    page = _exposition(controller, SimpleNamespace(counts={}))  # type: ignore[arg-type]
    assert exported_metrics(page.decode()) == listed_metrics("sparktier_controller_")


ALERTS = {
    (rule["alert"], rule["annotations"]["runbook"])
    for example in EXAMPLES
    for group in rules_of(values_of(example))["groups"]
    for rule in group["rules"]
}


@pytest.mark.parametrize(("alert", "runbook"), sorted(ALERTS))
def test_each_alert_names_its_runbook(alert: str, runbook: str) -> None:
    assert runbook == f"docs/runbooks/{alert}.md"
    text = (ROOT / runbook).read_text()
    assert text.startswith(f"# {alert}\n")
    for title in ("## What it means", "## Look", "## Do", "## Afterwards"):
        assert f"\n{title}\n" in text, title


def test_there_is_no_runbook_without_an_alert() -> None:
    pages = {page.stem for page in (DOCS / "runbooks").glob("Sparktier*.md")}
    assert pages == {alert for alert, _ in ALERTS}
