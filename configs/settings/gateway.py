"""The `gateway` section: whose requests are served, and which tiers OpenAI's `service_tier` names."""

from pydantic import Field

from sparktier.configs.settings.section import Section
from sparktier.configs.settings.tiers import TierName


class GatewaySettings(Section):
    """Keys, tenants and names of tiers."""

    keys_file: str | None = Field(
        default=None,
        min_length=1,
        description="YAML file of tenants with their keys, tiers and limits ([gateway](gateway.md)), read again when it"
        " changes; null asks for no key, and the front then listens on this machine alone.",
    )
    pepper_file: str | None = Field(
        default=None,
        min_length=1,
        description="File of the secret that keys are hashed with, for its owner alone to read; null takes it from the"
        " environment variable `SPARKTIER_PEPPER`.",
    )
    controller_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+$",
        description="Address of the controller, for the [console](console.md) of a gateway that runs by itself;"
        " `sparktier up` knows that of its own.",
    )
    priority_tier: TierName | None = Field(
        default=None, description="Tier of requests with `service_tier: priority`; null refuses them."
    )
    flex_tier: TierName | None = Field(
        default=None, description="Tier of requests with `service_tier: flex`; null refuses them."
    )
