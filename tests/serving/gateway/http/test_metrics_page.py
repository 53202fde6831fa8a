"""One page from several replicas: every sample has its replica, every metric stands there once, parsers accept it."""

from collections.abc import Mapping

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.http.metrics_page import MetricsPage, merged
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from support.gateways.replying_replica import replying


def page(amount: int) -> str:
    registry = CollectorRegistry()
    Counter("tokens", "Tokens.", ["text"], registry=registry).labels('a "{b}" # HELP c').inc(amount)
    Histogram("step_ms", "Steps.", registry=registry, buckets=(1, 10)).observe(amount)
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = list(text_string_to_metric_families(text))
    # The parser makes a family of each sample whose type no line tells.
    told = [family.name for family in families if family.type != "unknown"]
    assert len(set(told)) == len(told)
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


@pytest.mark.parametrize(
    "text",
    [
        "# TYPE a gauge\na 1\n",
        "a 1\n# EOF\n",
        "# a comment\n\n# HELP a\na 1\n# EOF",
        "# TYPE b gauge\n# HELP a A.\n# TYPE a gauge\na{} 1\n# UNIT a seconds\n",
        "#\tTYPE a  gauge\na\t1 1700000000\r\n",
        'a 1 # {trace="b"} 2\nnot a sample\na{unfinished="1} 2\n',
    ],
    ids=["type first", "end mark", "help without words", "other order", "odd spaces", "no samples"],
)
def test_a_page_in_any_form_is_merged(text: str) -> None:
    page = merged({0: text, 3: text})
    assert samples(page) == {("a", frozenset({("replica", "0")})): 1.0, ("a", frozenset({("replica", "3")})): 1.0}
    assert "EOF" not in page


def test_help_and_type_come_before_the_samples_whichever_replica_has_them() -> None:
    page = merged({0: "a_total 1\n", 1: "# HELP a_total A.\n# TYPE a_total counter\na_total 2\n"})
    assert page.splitlines()[:2] == ["# HELP a_total A.", "# TYPE a_total counter"]
    assert set(samples(page).values()) == {1.0, 2.0}


def test_a_label_may_hold_what_ends_lines_elsewhere() -> None:
    label = "a\u2028b\x85c\x0bd"
    page = merged({0: f'a{{b="{label}"}} 1\n'})
    assert list(samples(page)) == [("a", frozenset({("b", label), ("replica", "0")}))]


@given(st.text(alphabet='a#{}",= 1\\\n\u2028_', max_size=60))
def test_no_page_of_a_replica_spoils_the_whole(text: str) -> None:
    page = merged({0: text, 1: "good 1\n"})
    assert samples(page)["good", frozenset({("replica", "1")})] == 1.0


async def test_a_replica_is_on_the_page_while_it_runs_requests() -> None:
    async with (
        replying(lambda _: httpx.Response(200, content=page(1))) as url,
        AsyncReplicaClient() as client,
    ):
        replicas = tuple(Replica(n, url, ReplicaLife(state)) for n, state in enumerate(State))
        text = await MetricsPage(ReplicaTable(replicas), client).text()
    shown = {int(dict(labels)["replica"]) for _, labels in samples(text)}
    assert {replicas[number].state for number in shown} == {State.SERVING, State.DRAINING}
