"""The one client of replicas: keys, timeouts, connections, and the map from transport errors to ours.

No other module imports an HTTP client library.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp

from sparktier.configs.errors import ReplicaLost, ReplicaUnreachable
from sparktier.serving.clients.tls_files import TlsFiles

OK, UNAUTHORIZED = 200, 401
# What a client that doesn't read leaves unread is held several times over: as bytes, as messages, as its own answer.
CHUNK_BYTES = 32 << 10
# Replicas are on this machine or one network hop away: a connection that takes longer never comes.
CONNECT_TIMEOUT_S = 3.0
_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_FAILURES = (aiohttp.ClientError, OSError)
# Answers come as the replica wrote them.
_PLAIN = {"Accept-Encoding": "identity"}


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

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status

    def header(self, name: str) -> str | None:
        """Return the value of a header of the answer."""
        return self._response.headers.get(name)

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is server-sent events."""
        return self._response.content_type == "text/event-stream"

    async def chunks(self, *, idle_s: float | None = None) -> AsyncGenerator[bytes]:
        """Yield the body as it comes, and nothing (`b""`) each time that none has come for `idle_s`.

        Raises:
            ReplicaLost: it broke off.
        """
        content = self._response.content
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    chunk = await content.read(CHUNK_BYTES)
            except TimeoutError:
                yield b""
                continue
            except _FAILURES as error:
                raise _lost(error) from error
            if not chunk:
                return
            yield chunk

    async def read(self) -> bytes:
        """Return the whole body. Raises ReplicaLost when it breaks off."""
        try:
            return await self._response.read()
        except _FAILURES as error:
            raise _lost(error) from error

    def close(self) -> None:
        """Close the connection at once, whatever is left of the body."""
        self._response.close()


class AsyncReplicaClient:
    """Asks replicas by address from an event loop; an async context manager. `headers` show a key, see `bearer`.

    `tls` is for replicas at https addresses; without it they are trusted as this machine does.
    """

    def __init__(self, headers: Mapping[str, str] | None = None, tls: TlsFiles | None = None) -> None:
        self._tls = tls
        self._headers = {**_PLAIN, **(headers or {})}
        self._opened: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        # Made in the event loop that uses it.
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                headers=self._headers,
                # None is kept: a replica can close it just as the next request is sent on it.
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=CHUNK_BYTES,
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S),
                trust_env=False,
            )
        return self._opened

    @property
    def _ssl(self) -> ssl.SSLContext | bool:
        # Each connection takes what the files hold at its moment.
        return True if self._tls is None else self._tls.context

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what is open."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def open(self, url: str, body: bytes, headers: Mapping[str, str] | None = None) -> OpenAnswer:
        """Post the JSON `body` and return the start of the answer. Only connecting has a time limit.

        Raises:
            ReplicaUnreachable: no connection was taken.
            ReplicaLost: the connection broke before the answer began.
        """
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            answer = await self._session.post(url, data=body, headers=sent, allow_redirects=False, ssl=self._ssl)
            return OpenAnswer(answer)
        except _FAILURES as error:
            raise _lost(error) from error

    async def lines(self, url: str, *, idle_s: float) -> AsyncGenerator[bytes]:
        """Yield the lines of an answer that goes on; none but OK has any.

        Raises:
            ReplicaUnreachable: no connection was taken.
            ReplicaLost: it broke off, or no line came for `idle_s`.
        """
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                while response.status == OK:
                    async with asyncio.timeout(idle_s):
                        line = await response.content.readline()
                    if not line:
                        return
                    yield line
        except _FAILURES as error:
            raise _lost(error) from error

    async def ask(self, method: str, url: str, *, timeout_s: float, json: object = None) -> ReplicaAnswer:
        """Return a whole answer, whatever its status, within `timeout_s` in all.

        Raises:
            ReplicaUnreachable: no connection was taken.
            ReplicaLost: it broke off, or took longer.
        """
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(method, url, json=json, allow_redirects=False, ssl=self._ssl) as response,
            ):
                return ReplicaAnswer(response.status, await response.read())
        except _FAILURES as error:
            raise _lost(error) from error


class ReplicaClient:
    """Asks one replica at `url`, its own port, from a thread that may block. `headers` show a key."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, *, timeout_s: float) -> None:
        self.url = url
        self.headers = dict(headers or {})
        self._timeout_s = timeout_s

    def ask(self, method: str, path: str, *, json: object = None) -> ReplicaAnswer:
        """Return a whole answer, whatever its status. Raises ReplicaUnreachable or ReplicaLost."""

        async def asked() -> ReplicaAnswer:
            async with AsyncReplicaClient(self.headers) as client:
                return await client.ask(method, self.url + path, timeout_s=self._timeout_s, json=json)

        return asyncio.run(asked())


def _lost(error: Exception) -> ReplicaLost:
    kind = ReplicaUnreachable if isinstance(error, _NOT_CONNECTED) else ReplicaLost
    return kind(" ".join(f"{type(error).__name__} {error}".split())[:200])
