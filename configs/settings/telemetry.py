"""The `telemetry` section: where spans go. Metrics need no setting: they are served, not sent."""

from pydantic import Field

from sparktier.configs.settings.section import Section


class TelemetrySettings(Section):
    """What replicas tell of their steps."""

    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://\S+:\d{1,5}$",
        description="OpenTelemetry collector (OTLP over gRPC) that gets a span for each decode step of each rank, with"
        " its drafting and verifying; null makes no spans.",
    )
