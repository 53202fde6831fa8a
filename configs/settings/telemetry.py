"""The `telemetry` section: where spans go. Metrics need no setting: they are served, not sent."""

from pydantic import Field

from sparktier.configs.settings.section import Section


class TelemetrySettings(Section):
    """What the gateway tells of requests, and replicas of their steps."""

    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://\S+:\d{1,5}$",
        description="OpenTelemetry collector (OTLP over gRPC) that gets a span for each decode step of each rank, with"
        " its drafting and verifying, and one for each request of the gateway with its stages; null makes no spans.",
    )
