"""The one client of replicas: keys, timeouts, connections, and the map from transport errors to ours.

No other module imports an HTTP client library. Tests replace the network by a transport of their own.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from sparktier.configs.errors import ReplicaLost, ReplicaUnreachable

OK, UNAUTHORIZED = 200, 401
# Replicas are on this machine or one network hop away: a connection that takes longer never comes.
CONNECT_TIMEOUT_S = 3.0
# One connection for each request: a replica can close a kept one just as the next request is sent on it.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)
_FAILURES = (httpx.HTTPError, httpx.InvalidURL)


@dataclass(frozen=True)
class ReplicaAnswer:
    """A whole answer of a replica."""

    status: int
    content: bytes

    @property
    def text(self) -> str:
        """The content as text; bytes that are no UTF-8 are replaced."""
        return self.content.decode(errors="replace")


class OpenAnswer:
    """An answer whose body is still to come. It must be closed, which ends the request in the engine."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is server-sent events."""
        return str(self._response.headers.get("content-type", "")).startswith("text/event-stream")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises ReplicaLost when it breaks off."""
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except _FAILURES as error:
            raise _lost(error) from error

    async def read(self) -> bytes:
        """Return the whole body. Raises ReplicaLost when it breaks off."""
        try:
            return await self._response.aread()
        except _FAILURES as error:
            raise _lost(error) from error

    async def close(self) -> None:
        """Close the connection, whatever is left of the body."""
        await self._response.aclose()


class AsyncReplicaClient:
    """Asks replicas by address from an event loop; an async context manager. `headers` show a key, see `bearer`."""

    def __init__(
        self, headers: Mapping[str, str] | None = None, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._client = httpx.AsyncClient(headers=headers, limits=_LIMITS, trust_env=False, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what is open."""
        await self._client.aclose()

    async def open(self, url: str, body: bytes) -> OpenAnswer:
        """Post the JSON `body` and return the start of the answer. Only connecting has a time limit.

        Raises:
            ReplicaUnreachable: no connection was taken.
            ReplicaLost: the connection broke before the answer began.
        """
        headers = {"Content-Type": "application/json"}
        outgoing = self._client.build_request("POST", url, content=body, headers=headers, timeout=_timeout(None))
        try:
            return OpenAnswer(await self._client.send(outgoing, stream=True))
        except _FAILURES as error:
            raise _lost(error) from error

    async def ask(self, method: str, url: str, *, timeout_s: float, json: object = None) -> ReplicaAnswer:
        """Return a whole answer, whatever its status, within `timeout_s` in all.

        Raises:
            ReplicaUnreachable: no connection was taken.
            ReplicaLost: it broke off, or took longer.
        """
        try:
            # httpx limits each wait for bytes, and a slow trickle never exceeds that.
            async with asyncio.timeout(timeout_s):
                response = await self._client.request(method, url, json=json, timeout=_timeout(timeout_s))
        except (*_FAILURES, TimeoutError) as error:
            raise _lost(error) from error
        return ReplicaAnswer(response.status_code, response.content)


class ReplicaClient:
    """Asks one replica at `url`, its own port, from a thread that may block. `headers` show a key."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self._client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=_timeout(timeout_s),
            limits=_LIMITS,
            trust_env=False,
            transport=transport,
        )

    def ask(self, method: str, path: str, *, json: object = None) -> ReplicaAnswer:
        """Return a whole answer, whatever its status. Raises ReplicaUnreachable or ReplicaLost."""
        try:
            response = self._client.request(method, path, json=json)
        except _FAILURES as error:
            raise _lost(error) from error
        return ReplicaAnswer(response.status_code, response.content)


def _timeout(seconds: float | None) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=CONNECT_TIMEOUT_S)


def _lost(error: Exception) -> ReplicaLost:
    kind = ReplicaUnreachable if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else ReplicaLost
    return kind(" ".join(f"{type(error).__name__} {error}".split())[:200])
