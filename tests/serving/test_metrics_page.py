"""One page from several replicas: every sample has its replica, every metric stands there once, parsers accept it."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sparktier.serving.metrics_page import merged


def page(amount: int) -> str:
    registry = CollectorRegistry()
    Counter("tokens", "Tokens.", ["text"], registry=registry).labels('a "{b}" # HELP c').inc(amount)
    Histogram("step_ms", "Steps.", registry=registry, buckets=(1, 10)).observe(amount)
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_samples_are_those_of_the_replicas_with_a_label_more() -> None:
    pages: Mapping[int, str] = {0: page(5), 11: page(7)}
    expected = {
        (name, labels | {("replica", str(number))}): value
        for number, text in pages.items()
        for (name, labels), value in samples(text).items()
    }
    assert len(expected) == 2 * len(samples(pages[0]))
    text = merged(pages)
    assert samples(text) == expected
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert len(set(comments)) == len(comments)


def test_no_replica_no_metrics() -> None:
    assert merged({}) == ""
