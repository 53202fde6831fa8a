"""The gateway's listeners in one process: HTTP and gRPC for clients, HTTP for operators."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.settings.server import ServerSettings
from sparktier.serving.clients.addresses import host_port, http_url, listening
from sparktier.serving.clients.tls_files import TlsFiles
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.grpc.server import serving as grpc_serving
from sparktier.serving.gateway.http.connections import Connection
from sparktier.serving.gateway.http.front import front
from sparktier.serving.gateway.tls import http_tls

_INTERNAL_GRACE_S = 1.0


@dataclass(frozen=True)
class Sockets:
    """Listening sockets of HTTP."""

    public: socket.socket
    internal: socket.socket


@contextlib.contextmanager
def held(server: ServerSettings) -> Iterator[Sockets]:
    """Hold the sockets of all listeners; taken at once, because building a model can take minutes.

    Raises:
        ConfigError: this machine can't listen on one of the addresses.
    """
    with (
        _taken(server.host, server.port, key="server.port") as public,
        _taken(server.internal_host, server.internal, key="server.internal_port") as internal,
    ):
        # gRPC makes its own socket later.
        _taken(server.host, server.grpc, key="server.grpc_port").close()
        yield Sockets(public, internal)


def addresses(server: ServerSettings) -> str:
    """Return where the listeners are, as the line `ready` tells it."""
    http, grpc = http_url(server.host, server.port), host_port(server.host, server.grpc)
    if server.tls_cert_file is not None:
        http = http.replace("http:", "https:", 1)
    internal = http_url(server.internal_host, server.internal)
    return f"http={http} grpc={grpc} internal={internal} console={internal}/console"


async def serve(gateway: Gateway, internal: ASGIApp, sockets: Sockets, stopping: asyncio.Event) -> None:
    """Serve `gateway`, and `internal` to operators, until `stopping`; then let requests finish, see `shutdown_grace_s`.

    Raises:
        ConfigError: gRPC can't listen on its address, or a file of TLS can't be read.
    """
    tls = http_tls(gateway.server, gateway.failed_reloads)
    public = _Server(_uvicorn(front(gateway), grace_s=gateway.server.shutdown_grace_s, tls=tls))
    inside = _Server(_uvicorn(internal, grace_s=_INTERNAL_GRACE_S))
    # Leaving the context ends calls of gRPC while HTTP ends its requests.
    async with grpc_serving(gateway):
        serving = asyncio.create_task(public.serve(sockets=[sockets.public]))
        showing = asyncio.create_task(inside.serve(sockets=[sockets.internal]))
        asked = asyncio.create_task(stopping.wait())
        reading = None if tls is None else asyncio.create_task(tls.watch())
        await asyncio.wait({serving, showing, asked}, return_when=asyncio.FIRST_COMPLETED)
        public.should_exit = True
    asked.cancel()
    if reading is not None:
        reading.cancel()
    await serving
    inside.should_exit = True
    await showing


def _uvicorn(app: ASGIApp, *, grace_s: float, tls: TlsFiles | None = None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        # Its records go where those of the process go.
        log_config=None,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=round(grace_s),
        ssl_context_factory=None if tls is None else lambda *_: tls.server_context,
    )


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process: the front stops first, replicas after it."""
        yield


def _taken(host: str, port: int, *, key: str) -> socket.socket:
    try:
        return listening(host, port)
    except OSError as error:
        rule = f"must be an address this machine can listen on ({error.strerror})"
        cure = "Stop what listens there, or choose another port or host."
        raise ConfigError([Problem(key, rule, host_port(host, port), cure)]) from error
