"""uvicorn's HTTP connection with bounds on the head of a request, which uvicorn would await and keep for ever."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 10.0
HEAD_BYTES = 64 << 10


class Connection(HttpToolsProtocol):
    """A client's connection. One that has sent no whole head in time, or one that is too large, is closed."""

    _late: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._have_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Wait for the rest of a head."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Begin the request."""
        self._have_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Read on. What begins a head may have the body before it too, and is not counted."""
        before = self._late
        super().data_received(data)
        if before is not None and self._late is before:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse()

    def _await_head(self) -> None:
        if self._late is None:
            self._head_bytes = 0
            self._late = self.loop.call_later(HEAD_TIMEOUT_S, self._too_late)

    def _have_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if self.cycle is not None and not self.cycle.response_complete:
            # The request before it is still answered on this connection.
            self._await_head()
        else:
            self._refuse()

    def _refuse(self) -> None:
        self._have_head()
        limits = f"within {HEAD_TIMEOUT_S:g} s and have at most {HEAD_BYTES} bytes"
        self.send_400_response(f"The head of a request must arrive {limits}.")
