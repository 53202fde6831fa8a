"""The `controller` section: who steers depth and caps of users, how fast, and where its log is."""

from pydantic import Field

from sparktier.configs.settings.section import Section


class ControllerSettings(Section):
    """The controller."""

    enabled: bool = Field(
        default=False,
        description="`sparktier up` runs a controller, which sets rung and caps of users of every replica by tier"
        " ([depth policy](policies/depth.md)).",
    )
    tick_ms: int = Field(default=1000, ge=100, le=60_000, description="Time between two decisions, in milliseconds.")
    hold_ms: int = Field(
        default=15_000, ge=0, description="Least time between two moves of a rung, and before caps rise again."
    )
    margin_frac: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="How much better another rung must be, and how far above its promise a tier is planned.",
    )
    caution_frac: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "Whose text caps of users are judged by: 0 is the tier's median user, 1 its 5th percentile. At 0 a refusal "
            "counts as a miss, and users are let in while more of them keep their promise than miss it."
        ),
    )
    stale_ms: int = Field(default=5000, ge=100, description="Age at which a replica's signals count no more.")
    skew_ms: int = Field(
        default=60_000, ge=0, description="How far ahead of the controller's a replica's clock may be."
    )
    ttl_ms: int = Field(
        default=10_000,
        ge=500,
        description="Time after which a replica that hears nothing takes `speculation.safe_rung` as its ceiling.",
    )
    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address of its routes, which ask for the admin key."
    )
    port: int | None = Field(default=None, ge=1, le=65535, description="Port of its routes; null takes a free one.")
    lease_path: str | None = Field(
        default=None,
        min_length=1,
        description="File that the one of several controllers holds which decides; null is one in the run's directory.",
    )
    kubernetes_lease: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?/[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
        description="Lease object that takes the file's place, as `namespace/name`.",
    )
    log_path: str | None = Field(
        default=None,
        min_length=1,
        description="Log of decisions with their inputs, a line of JSON each; null is a file in the run's directory.",
    )
    log_bytes: int = Field(
        default=64 << 20, ge=1 << 16, description="Size at which a new log begins; four older ones are kept."
    )
