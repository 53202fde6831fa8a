"""The front's `/metrics`: what every serving replica exports, each sample with a `replica` label.

Works on the text form, line by line: parsing thousands of samples would stall the streams this process relays. Knows
nothing of what the metrics mean.
"""

import asyncio
import time
from collections.abc import Mapping

import httpx

from sparktier.serving.replica_table import Replica, ReplicaTable, State

# Whoever asks more often gets the same page: a client can't make replicas answer faster than this.
_FRESH_S = 1.0
_TIMEOUT_S = 10.0


class MetricsPage:
    """The page, made anew when it is asked for and old."""

    def __init__(self, table: ReplicaTable, client: httpx.AsyncClient) -> None:
        self._table = table
        self._client = client
        self._lock = asyncio.Lock()
        self._made_s = -_FRESH_S
        self._text = ""

    async def text(self) -> str:
        """Return the page; a replica that doesn't answer is left out."""
        async with self._lock:
            if time.monotonic() - self._made_s >= _FRESH_S:
                serving = [replica for replica in self._table.replicas if replica.state is State.SERVING]
                pages = await asyncio.gather(*map(self._page, serving))
                numbers = [replica.number for replica in serving]
                self._text = merged({n: page for n, page in zip(numbers, pages, strict=True) if page is not None})
                self._made_s = time.monotonic()
            return self._text

    async def _page(self, replica: Replica) -> str | None:
        try:
            answer = await self._client.get(f"{replica.url}/metrics", timeout=_TIMEOUT_S)
        except httpx.HTTPError:
            return None
        return answer.text if answer.status_code == 200 else None


def merged(pages: Mapping[int, str]) -> str:
    """Return the pages of replicas, given by number, as one: each metric once, its samples labelled."""
    metrics: dict[str, list[str]] = {}
    for number, page in pages.items():
        for line in page.splitlines():
            if line.startswith("# HELP "):
                lines = metrics.setdefault(line.split(" ", 3)[2], [line])
            elif line.startswith("# TYPE "):
                lines += [line] if len(lines) == 1 else []
            elif line:
                lines.append(_labelled(line, number))
    return "".join(f"{line}\n" for lines in metrics.values() for line in lines)


def _labelled(sample: str, number: int) -> str:
    """Return the line `name{labels} value` or `name value` with the replica among its labels."""
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{replica="{number}",{rest}'
    name, _, rest = sample.partition(" ")
    return f'{name}{{replica="{number}"}} {rest}'
