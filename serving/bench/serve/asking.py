"""Sends one offered request to the gateway, reads its stream, and says what became of it."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparktier.cluster.traffic.attainment import Result
from sparktier.configs.errors import ReplicaError, ReplicaLost
from sparktier.serving.bench.serve.offered import Offered
from sparktier.serving.clients.replica import OK, AsyncReplicaClient, OpenAnswer
from sparktier.serving.clients.replica_keys import bearer
from sparktier.serving.gateway.core.events import Message, MessageStream
from sparktier.serving.gateway.tier_resolution import TIER_HEADER

_ROUTE = "/v1/chat/completions"


@dataclass(frozen=True)
class Asked:
    """One request and its answer. `result` has the replica's times where it told them; `client_` is what was seen here.

    `late_ms`: how much later than due it was sent. More than a few milliseconds mean that this process, not the
    deployment, was the bottleneck.
    """

    offered: Offered
    result: Result
    late_ms: float
    ended_ms: float
    client_ttft_ms: float | None
    client_tok_s: float | None
    prompt_tokens: int | None


class Asker:
    """Asks the gateway at `url`. `keys` are those of tenants; `names` those of tiers."""

    def __init__(
        self,
        client: AsyncReplicaClient,
        url: str,
        *,
        model: str,
        names: Mapping[int, str],
        keys: Mapping[str, str],
        timeout_s: float,
        now_ms: Callable[[], float],
    ) -> None:
        self._client = client
        self._url = url + _ROUTE
        self._model = model
        self._names = names
        self._keys = keys
        self._timeout_s = timeout_s
        self._now_ms = now_ms

    async def __call__(self, offered: Offered) -> Asked:
        """Send `offered` now and return once its answer is over."""
        reading = _Reading(self._now_ms)
        try:
            async with asyncio.timeout(self._timeout_s):
                error = await self._read(offered, reading)
        except TimeoutError:
            error = "timeout"
        except ReplicaLost:
            error = "lost"
        return reading.asked(offered, error, tier=self._names[offered.arrival.tier])

    async def characters_per_token(self, text: str, tenant: str) -> float:
        """Return how many characters a token of `text` has, by what the gateway counts.

        Raises:
            ReplicaError: it doesn't answer.
        """
        headers = self._headers(tenant)
        body = {"model": self._model, "prompt": text, "max_tokens": 1}
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.open(self._url.replace(_ROUTE, "/v1/completions"), _bytes(body), headers)
                content = await answer.read()
        except (ReplicaLost, TimeoutError) as error:
            raise ReplicaError(
                f"{self._url}: the gateway must answer (found {error or 'nothing'}). Start it."
            ) from None
        if answer.status != OK:
            found = f"{answer.status}: {content.decode(errors='replace'):.300}"
            raise ReplicaError(f"{self._url}: the gateway must answer a prompt (found {found}). Mend what it names.")
        return len(text) / max(int(json.loads(content)["usage"]["prompt_tokens"]), 1)

    async def _read(self, offered: Offered, reading: "_Reading") -> str | None:
        """Return why there is no whole answer, or None."""
        headers = {TIER_HEADER: self._names[offered.arrival.tier], **self._headers(offered.arrival.tenant)}
        answer = await self._client.open(self._url, _bytes(offered.body(self._model)), headers)
        try:
            if answer.status != OK:
                return _refusal(answer.status, await answer.read())
            return await _events(answer, reading)
        finally:
            answer.close()

    def _headers(self, tenant: str) -> dict[str, str]:
        return bearer(self._keys[tenant]) if tenant in self._keys else {}


async def _events(answer: OpenAnswer, reading: "_Reading") -> str | None:
    stream = MessageStream()
    async for chunk in answer.chunks():
        for message in stream.messages(chunk):
            if isinstance(error := message.get("error"), dict):
                return f"{error.get('code')} in the stream"
            reading.take(message)
        if stream.done:
            return None
    return "lost"


class _Reading:
    """What has been seen of one answer."""

    def __init__(self, now_ms: Callable[[], float]) -> None:
        self._now_ms = now_ms
        self._sent_ms = now_ms()
        self._first_ms: float | None = None
        self._last_ms: float | None = None
        self._usage: Mapping[str, Any] = {}

    def take(self, message: Message) -> None:
        """Take one event."""
        delta = (message.get("choices") or [{}])[0].get("delta") or {}
        if delta.get("content") or delta.get("reasoning_content"):
            self._last_ms = self._now_ms()
            self._first_ms = self._last_ms if self._first_ms is None else self._first_ms
        self._usage = message.get("usage") or self._usage

    def asked(self, offered: Offered, error: str | None, *, tier: str) -> Asked:
        """Return the whole of it."""
        tokens = int(self._usage.get("completion_tokens") or 0)
        served: Mapping[str, Any] = self._usage.get("sparktier") or {}
        waited = None if self._first_ms is None else self._first_ms - self._sent_ms
        tok_s = None
        if self._first_ms is not None and self._last_ms is not None and self._last_ms > self._first_ms:
            tok_s = 1000.0 * (tokens - 1) / (self._last_ms - self._first_ms)
        result = Result(
            at_ms=offered.arrival.at_ms,
            tokens=tokens,
            ttft_ms=served.get("ttft_ms", waited),
            tok_s=served.get("attained_tok_s", tok_s),
            error=error,
            downgraded=served.get("tier", tier) != tier,
        )
        late_ms = self._sent_ms - offered.arrival.at_ms
        return Asked(offered, result, late_ms, self._now_ms(), waited, tok_s, self._usage.get("prompt_tokens"))


def _refusal(status: int, content: bytes) -> str:
    try:
        code = json.loads(content)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = "unknown"
    return f"{status} {code}"


def _bytes(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
