"""The front's `/metrics`: what every ready replica exports, each sample with a `replica` label.

Works on the text form, line by line: parsing thousands of samples would stall the streams that this process relays.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparktier.configs.errors import ReplicaLost
from sparktier.serving.clients.replica import OK, AsyncReplicaClient
from sparktier.serving.gateway.routing import Replica, ReplicaTable

# Within this time every client gets the same page, so that none can make replicas answer more often.
_FRESH_S = 1.0
_TIMEOUT_S = 10.0
# Lines of Prometheus' text form: `# HELP name words` or `# TYPE name kind`, and `name{labels} value timestamp`.
_COMMENT = re.compile(r"#\s+(HELP|TYPE)\s+([a-zA-Z_:][\w:]*)(?:\s|$)", re.ASCII)
_LABEL = r'[a-zA-Z_]\w*\s*=\s*"(?:[^"\\]|\\.)*"\s*,?\s*'
_VALUE = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|Inf|NaN)(?:\s+-?\d+)?"
_SAMPLE = re.compile(rf"\s*([a-zA-Z_:][\w:]*)(?:\s*{{\s*((?:{_LABEL})*)}}\s*|\s+)({_VALUE})\s*(?:#.*)?$", re.ASCII)
# Ends of the names of a metric's samples.
_PARTS = ("_bucket", "_count", "_created", "_sum", "_total")


class MetricsPage:
    """The page; a request makes it anew once it is older than `_FRESH_S`."""

    def __init__(self, table: ReplicaTable, client: AsyncReplicaClient) -> None:
        self._table = table
        self._client = client
        self._lock = asyncio.Lock()
        self._made_s = -_FRESH_S
        self._text = ""

    async def text(self) -> str:
        """Return the page; a replica that doesn't answer is left out."""
        async with self._lock:
            if time.monotonic() - self._made_s >= _FRESH_S:
                ready = [replica for replica in self._table.replicas if replica.state.has_ready_engine]
                pages = await asyncio.gather(*map(self._page, ready))
                numbers = [replica.number for replica in ready]
                self._text = merged({n: page for n, page in zip(numbers, pages, strict=True) if page is not None})
                self._made_s = time.monotonic()
            return self._text

    async def _page(self, replica: Replica) -> str | None:
        try:
            answer = await self._client.ask("GET", f"{replica.url}/metrics", timeout_s=_TIMEOUT_S)
        except ReplicaLost:
            return None
        return answer.text if answer.status == OK else None


def merged(pages: Mapping[int, str]) -> str:
    """Return the pages of replicas, given by number, as one: each metric once, its samples labelled.

    What is neither a sample, nor the help or type of a metric, is left out: one line that a parser refuses would cost
    the whole page.
    """
    metrics: dict[str, _Metric] = {}
    for number, page in pages.items():
        family = ""
        # Not splitlines: a label's value may hold characters that it takes for the end of a line.
        for line in page.split("\n"):
            if comment := _COMMENT.match(line):
                kind, family = comment.groups()
                metrics.setdefault(family, _Metric()).comments.setdefault(kind, line)
            elif sample := _SAMPLE.match(line):
                name, labels, value = sample.groups()
                family = family if _belongs(name, family) else name
                metrics.setdefault(family, _Metric()).samples.append(_labelled(name, labels, value, number))
    return "".join(f"{line}\n" for metric in metrics.values() for line in metric.lines())


@dataclass
class _Metric:
    comments: dict[str, str] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return its lines of the page; none without a sample."""
        return [*self.comments.values(), *self.samples] if self.samples else []


def _belongs(sample: str, metric: str) -> bool:
    return sample == metric or (sample.startswith(metric) and sample.removeprefix(metric) in _PARTS)


def _labelled(name: str, labels: str | None, value: str, number: int) -> str:
    """Return a sample with the replica among its labels, given as the text between the braces."""
    rest = f",{labels}" if labels else ""
    return f'{name}{{replica="{number}"{rest}}} {value}'
