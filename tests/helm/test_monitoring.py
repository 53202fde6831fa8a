"""Alerts and dashboards ask only for metrics that there are, with labels that they have."""

import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest

from sparktier.serving.gateway.telemetry.metrics import _TOK_S
from support.charts.prometheus import dashboard_queries, rules_of
from support.charts.rendered import EXAMPLES, ROOT, values_of

_ROW = re.compile(r"^\| `(sparktier_\w+)` \| (\w+) \| ([^|]*)\|", re.MULTILINE)
# What Prometheus and the gateway's page of all replicas add.
_ADDED = {"replica", "le", "instance", "job"}


def metrics() -> dict[str, set[str]]:
    """Return the labels of each metric of docs/metrics.md, by the name of its samples."""
    found: dict[str, set[str]] = {}
    for name, kind, labels in _ROW.findall((ROOT / "docs" / "metrics.md").read_text()):
        ends = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        found |= {name + end: set(re.findall(r"`(\w+)`", labels)) | _ADDED for end in ends}
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Yield every expression of the rules of the examples, and of the dashboards."""
    for example in EXAMPLES:
        for group in rules_of(values_of(example))["groups"]:
            for rule in group["rules"]:
                yield f"{example.stem} {rule['alert']}", rule["expr"]
    for title, query in dashboard_queries().items():
        yield f"sparktier {title}", query


QUERIES = list(queries())


def selectors(node: Any) -> Iterator[Any]:
    """Yield each vector selector below `node`."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    if isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
        return
    for name in ("expr", "lhs", "rhs"):
        if (child := getattr(node, name, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", ()) or ():
        yield from selectors(child)


@pytest.mark.parametrize("query", [text for _, text in QUERIES], ids=[name for name, _ in QUERIES])
def test_a_query_asks_for_metrics_that_there_are(query: str) -> None:
    known = metrics()
    found = list(selectors(promql_parser.parse(query)))
    assert found
    for selector in found:
        assert selector.name in known, selector.name
        wanted = {matcher.name for matcher in selector.matchers.matchers}
        assert wanted <= known[selector.name], selector.name


def test_every_tier_with_a_promise_is_alerted_of_at_a_bound_of_the_histogram() -> None:
    for example in EXAMPLES:
        slow = {
            (name.split()[0], tier): float(bound)
            for name, query in QUERIES
            for tier, bound in re.findall(r'user_tok_s_bucket\{tier="(\w+)",le="([\d.]+)"', query)
        }
        for tier in values_of(example)["config"]["tiers"].values():
            promise = tier.get("promise_tok_s")
            below = [bound for bound in _TOK_S if promise and bound <= promise]
            assert slow.get((example.stem, tier["name"])) == (max(below) if below else None)


def test_a_metric_that_there_is_not_is_seen() -> None:
    found = list(selectors(promql_parser.parse('sum(rate(sparktier_gone_total{tier="x"}[5m])) / max(up)')))
    assert [selector.name for selector in found] == ["sparktier_gone_total", "up"]
    assert not {"sparktier_gone_total", "up"} & metrics().keys()
