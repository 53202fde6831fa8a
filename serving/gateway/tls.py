"""The certificates of each listener and of the client of replicas, by the settings."""

from collections import Counter

from sparktier.configs.settings.server import ServerSettings
from sparktier.serving.clients.tls_files import TlsFiles, TlsNames


def http_tls(server: ServerSettings, failed: Counter[str]) -> TlsFiles | None:
    """Return the files of the HTTP listener, or None without TLS. Raises ConfigError for one that can't be used."""
    return _listener(server, "tls", server.tls_cert_file, server.tls_key_file, failed)


def grpc_tls(server: ServerSettings, failed: Counter[str]) -> TlsFiles | None:
    """Return the files of the gRPC listener, or None without TLS. Raises ConfigError for one that can't be used."""
    return _listener(server, "grpc_tls", server.grpc_tls_cert_file, server.grpc_tls_key_file, failed)


def replica_tls(server: ServerSettings, failed: Counter[str]) -> TlsFiles | None:
    """Return the files for replicas at https addresses, or None where none are named. Raises ConfigError likewise."""
    cert, key, ca = server.replica_cert_file, server.replica_key_file, server.replica_ca_file
    if cert is None and ca is None:
        return None
    names = TlsNames("server.replica_cert_file", cert, "server.replica_key_file", key, "server.replica_ca_file", ca)
    return TlsFiles(names, server=False, failed=failed)


def _listener(
    server: ServerSettings, kind: str, cert: str | None, key: str | None, failed: Counter[str]
) -> TlsFiles | None:
    if cert is None:
        return None
    names = TlsNames(
        f"server.{kind}_cert_file",
        cert,
        f"server.{kind}_key_file",
        key,
        "server.tls_client_ca_file",
        server.tls_client_ca_file,
    )
    return TlsFiles(names, server=True, failed=failed)
