"""The `server` and `supervision` sections: what the HTTP front accepts, and how failed replicas come back."""

from pydantic import Field

from sparktier.configs.settings.section import Section

# A pod or a terminal gives up on us after this long.
SHUTDOWN_LIMIT_S = 15.0
# What ending replicas and Ray takes of it once requests are gone (4.5 s were seen).
_ENDING_S = 6.0
_INTERNAL_ABOVE, _GRPC_ABOVE = 1000, 500
_LAST_PORT = 65535


class ServerSettings(Section):
    """The listeners, and the bounds of requests."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; `0.0.0.0` is all.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on.")
    internal_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address of the listener for operators, which asks for no key.",
    )
    internal_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Its port, with `/metrics`, `/healthz` and `/readyz`; null takes the one 1000 above `port`, or"
        " below it where there is none.",
    )
    grpc_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port of the gRPC listener, on the address `host`; null takes the one 500 above `port`, or below it"
        " where there is none.",
    )
    grpc_tls_cert_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file of the gRPC listener's certificate chain; null serves without TLS.",
    )
    grpc_tls_key_file: str | None = Field(
        default=None, min_length=1, description="PEM file of the certificate's private key."
    )
    tls_cert_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file of the HTTP listener's certificate chain; null serves without TLS. All files of TLS are"
        " read again when they change ([gateway](gateway.md#tls)).",
    )
    tls_key_file: str | None = Field(
        default=None, min_length=1, description="PEM file of that certificate's private key."
    )
    tls_client_ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file of the certificates that sign those of clients; with it the listeners with TLS take no"
        " other client. Null asks for none.",
    )
    replica_ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file of what signs the certificates of replicas at https addresses, in `sparktier gateway`;"
        " null trusts what this machine trusts.",
    )
    replica_cert_file: str | None = Field(
        default=None, min_length=1, description="PEM file of the certificate that such replicas are shown; null: none."
    )
    replica_key_file: str | None = Field(
        default=None, min_length=1, description="PEM file of that certificate's private key."
    )
    max_body_bytes: int = Field(
        default=4 << 20, ge=1024, le=1 << 30, description="Largest request body; a larger one is answered 413."
    )
    max_concurrent_requests: int = Field(
        default=256,
        ge=1,
        description="Requests in the front at once; one more is answered 429. As many bodies may be on their way.",
    )
    body_timeout_s: float = Field(
        default=10.0, gt=0, description="Longest that a request's body may take to arrive; then it is answered 408."
    )
    request_timeout_s: float = Field(
        default=600.0, gt=0, description="Longest that one request may take before it is ended with an error."
    )
    heartbeat_s: float = Field(
        default=15.0,
        gt=0,
        description="A stream in which nothing comes for so long gets a comment, so that no proxy between ends it.",
    )
    shutdown_grace_s: float = Field(
        default=8.0,
        gt=0,
        le=SHUTDOWN_LIMIT_S - _ENDING_S,
        description="After a stop signal, how long requests in flight may go on before they are cut.",
    )

    @property
    def internal(self) -> int:
        """Port of the listener for operators."""
        return _beside(self.port, _INTERNAL_ABOVE) if self.internal_port is None else self.internal_port

    @property
    def grpc(self) -> int:
        """Port of the gRPC listener."""
        return _beside(self.port, _GRPC_ABOVE) if self.grpc_port is None else self.grpc_port


def _beside(port: int, distance: int) -> int:
    return port + distance if port + distance <= _LAST_PORT else port - distance


class SupervisionSettings(Section):
    """Watching and restarting replicas."""

    start_timeout_s: float = Field(
        default=600.0, gt=0, description="A replica that is not ready after this long counts as failed."
    )
    restart_backoff_first_s: float = Field(
        default=1.0, gt=0, description="Pause before the first restart; each pause is drawn between half of it and all."
    )
    restart_backoff_max_s: float = Field(
        default=60.0, gt=0, description="Longest pause: it doubles with each failure up to this."
    )
    healthy_after_s: float = Field(
        default=60.0, gt=0, description="A replica that served this long starts again from the first pause."
    )
    probe_interval_s: float = Field(default=2.0, gt=0, description="Time between two health probes of a replica.")
    probe_timeout_s: float = Field(default=30.0, gt=0, description="A probe unanswered for this long has failed.")
