"""The gRPC listener: bounds of its connections, TLS, health and reflection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.settings.server import ServerSettings
from sparktier.serving.clients.addresses import host_port
from sparktier.serving.clients.tls_files import TlsFiles
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.grpc.service import SERVICE, handlers
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.tls import grpc_tls

_HEALTH_INTERVAL_S = 0.5
_METADATA_BYTES = 16 << 10
_PING_INTERVAL_MS = 10_000
_PING_STRIKES = 2
_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
_HANDSHAKE_TIMEOUT_MS = 10_000
# Calls that wait for a place are told so by the core; beyond these gRPC refuses them itself.
_CALLS_PER_REQUEST = 4


def bounds(server: ServerSettings) -> list[tuple[str, int]]:
    """Return the channel arguments that bound what one client can take."""
    return [
        ("grpc.max_receive_message_length", server.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", server.max_concurrent_requests),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
        # A client that pings more often is told to go away.
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", _PING_STRIKES),
        # One that doesn't answer ours is gone.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
        ("grpc.so_reuseport", 0),
    ]


@contextlib.asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[int]:
    """Serve until the body ends, then let calls finish for `server.shutdown_grace_s`; yield the port.

    Raises:
        ConfigError: the address can't be listened on, or a file of TLS can't be read.
    """
    settings = gateway.server
    server = grpc.aio.server(
        options=bounds(settings), maximum_concurrent_rpcs=_CALLS_PER_REQUEST * settings.max_concurrent_requests
    )
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_generic_rpc_handlers((handlers(gateway),))
    services = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(services, server)
    tls = grpc_tls(settings, gateway.failed_reloads)
    port = _listen(server, settings, tls)
    await server.start()
    tasks = [asyncio.create_task(_tell(health, gateway.table))]
    if tls is not None:
        tasks.append(asyncio.create_task(tls.watch()))
    try:
        yield port
    finally:
        for task in tasks:
            task.cancel()
        await health.enter_graceful_shutdown()
        await server.stop(settings.shutdown_grace_s)


def _listen(server: grpc.aio.Server, settings: ServerSettings, tls: TlsFiles | None) -> int:
    address = host_port(settings.host, settings.grpc)
    try:
        return (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, _credentials(tls, clients=settings.tls_client_ca_file is not None))
        )
    except RuntimeError as error:
        rule, cure = "must be a port this machine can listen on", "Stop what listens there, or choose another port."
        raise ConfigError([Problem("server.grpc_port", rule, address, cure)]) from error


def _credentials(tls: TlsFiles, *, clients: bool) -> grpc.ServerCredentials:
    """Return credentials that each handshake asks for the certificates of its moment."""

    def now() -> grpc.ServerCertificateConfiguration:
        found = tls.certificates
        return grpc.ssl_server_certificate_configuration([(found.key, found.cert)], found.ca or None)

    return grpc.dynamic_ssl_server_credentials(now(), now, require_client_authentication=clients)


async def _tell(health: HealthServicer, table: ReplicaTable) -> None:
    """Keep the health of the server and of the service what the replicas make it."""
    while True:
        ready = bool(table.serving)
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            await health.set(name, status)
        await asyncio.sleep(_HEALTH_INTERVAL_S)
