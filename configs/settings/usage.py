"""The `usage` section: where the log of use is kept."""

from pydantic import Field

from sparktier.configs.settings.section import Section


class UsageSettings(Section):
    """The log of use: tokens of each request, by tenant and tier."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of the log of use ([gateway](gateway.md#usage)), which one gateway alone may write; null"
        " keeps none.",
    )
    max_file_bytes: int = Field(
        default=64 << 20, ge=4096, le=1 << 32, description="Size at which the log goes on in a new file."
    )
