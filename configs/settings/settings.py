"""All settings of one deployment, as the sections they come in.

Rules that compare keys stand in `rules.py`, reading files in `loader.py`.
"""

from collections.abc import Mapping

from pydantic import Field

from sparktier.configs.settings.controller import ControllerSettings
from sparktier.configs.settings.gateway import GatewaySettings
from sparktier.configs.settings.model import ModelSettings, ModelSource
from sparktier.configs.settings.replicas import RaySettings, ReplicaSettings
from sparktier.configs.settings.section import Section
from sparktier.configs.settings.server import ServerSettings, SupervisionSettings
from sparktier.configs.settings.speculation import SpeculationSettings
from sparktier.configs.settings.telemetry import TelemetrySettings
from sparktier.configs.settings.tiers import TierId, TierSettings
from sparktier.configs.settings.tokens import TokenSettings
from sparktier.configs.settings.training import TrainingSettings
from sparktier.configs.settings.usage import UsageSettings

__all__ = [
    "ControllerSettings",
    "GatewaySettings",
    "ModelSettings",
    "ModelSource",
    "RaySettings",
    "ReplicaSettings",
    "ServerSettings",
    "Settings",
    "SpeculationSettings",
    "SupervisionSettings",
    "TelemetrySettings",
    "TierSettings",
    "TokenSettings",
    "TrainingSettings",
    "UsageSettings",
]


def _one_best_effort_tier() -> Mapping[int, TierSettings]:
    return {0: TierSettings(name="standard", default=True)}


class Settings(Section):
    """A whole configuration file."""

    model: ModelSettings = Field(description="Which model is served.")
    replicas: ReplicaSettings = Field(default=ReplicaSettings(), description="How often, and over which ranks.")
    ray: RaySettings = Field(default=RaySettings(), description="The Ray cluster that holds the ranks.")
    speculation: SpeculationSettings = Field(default=SpeculationSettings(), description="Drafting and verification.")
    training: TrainingSettings = Field(
        default=TrainingSettings(), description="Features of the model for training a drafter."
    )
    tiers: Mapping[TierId, TierSettings] = Field(
        default_factory=_one_best_effort_tier,
        min_length=1,
        description="Classes of users by id, a number from 0 to 63 that is never given to another tier. All keys are"
        " checked; `promise_tok_s`, `weight` and `cap_tokens` reach the ranks, and can be changed while it runs"
        " ([tiers](tiers.md)).",
    )
    telemetry: TelemetrySettings = Field(
        default=TelemetrySettings(), description="What is told of requests and of steps."
    )
    gateway: GatewaySettings = Field(
        default=GatewaySettings(), description="Whose requests are served, and as which tiers ([gateway](gateway.md))."
    )
    tokens: TokenSettings = Field(
        default=TokenSettings(), description="JSON Web Tokens of an issuer, beside keys or in their place."
    )
    usage: UsageSettings = Field(default=UsageSettings(), description="The log of use.")
    controller: ControllerSettings = Field(
        default=ControllerSettings(), description="Depth and caps of users, steered by tier."
    )
    server: ServerSettings = Field(default=ServerSettings(), description="The HTTP front.")
    supervision: SupervisionSettings = Field(
        default=SupervisionSettings(), description="Watching and restarting replicas."
    )

    @property
    def default_tier(self) -> int:
        """Id of the tier that serves requests which name none."""
        return next(tier_id for tier_id, tier in self.tiers.items() if tier.default)
