"""The file of `sparktier simulate` and `sparktier plan`: replicas, tiers, traffic, what goes wrong, and what is run."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.loading.loader import read_section
from sparktier.configs.settings.section import Section
from sparktier.configs.settings.tiers import TierId, TierSettings

Frac = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Millis = Annotated[float, Field(ge=0)]
Tokens = Annotated[int, Field(ge=1)]


class ProfileSettings(Section):
    """What one replica is."""

    step_times: str
    """A reference table of configs/step_time_tables/, or a file of `sparktier profile` beside this one."""
    table_off_frac: Positive = 1.0
    """What steps really take, over what the table says; planner and controller believe the table."""
    attention_dp: Annotated[int, Field(ge=1)] = 1
    texts: str = "published"
    """`published` (the DSpark paper's acceptance), `reported` (others', of DeepSeek-V4-Flash), or a file of recorded
    text beside this one."""
    drafts: str = "chain5"
    """Of a file of recorded text, the way of drafting."""
    acceptance_off_frac: Positive = 1.0
    """Every drafted token's chance, over that of the texts."""
    drafted_tokens: Annotated[int, Field(ge=1, le=64)] = 5
    max_running: Annotated[int, Field(ge=1)]
    kv_tokens: Tokens
    chunk_tokens: Tokens = 8192
    prefills: bool = True
    """Whether prompts are prefilled here; else elsewhere, and only their KV counts."""
    live_shares: bool = True
    starts_ms: Millis = 60_000.0


class TrafficSettings(Section):
    """Which part of a trace is offered. Requests before `warm_up_s` load the cluster and are not counted."""

    start_s: Annotated[float, Field(ge=0)] = 0.0
    warm_up_s: Annotated[float, Field(ge=0)] = 45.0
    counted_s: Positive = 60.0
    drain_s: Annotated[float, Field(ge=0)] = 30.0
    most_prompt_tokens: Tokens | None = None
    most_output_tokens: Tokens | None = None
    tier_shares: Annotated[dict[TierId, Positive], Field(min_length=1)]
    """By tier, its part of the sessions."""


class FailureSettings(Section):
    """One replica in so many is lost at a time after the warm-up, for a while."""

    one_in: Annotated[int, Field(ge=1)]
    after_s: Annotated[float, Field(ge=0)] = 10.0
    for_s: Positive = 60.0


class TroubleSettings(Section):
    """What goes wrong between replicas and controller, and which replicas fail."""

    signal_delay_ms: Millis = 50.0
    signal_loss_frac: Frac = 0.0
    plan_delay_ms: Millis = 50.0
    plan_loss_frac: Frac = 0.0
    failures: FailureSettings | None = None


class SteeringSettings(Section):
    """The controller's parameters, as in the section `controller` of a deployment."""

    tick_ms: Annotated[int, Field(ge=1)] = 1000
    hold_ms: Annotated[int, Field(ge=0)] = 15_000
    margin_frac: Frac = 0.05
    caution_frac: Frac = 0.0
    stale_ms: Annotated[int, Field(ge=1)] = 5000


class SimulateSettings(Section):
    """A whole simulation: every policy at every load with every seed, on the same requests."""

    replicas: Annotated[int, Field(ge=1, le=4096)]
    gateways: Annotated[int, Field(ge=1)] = 2
    profile: ProfileSettings
    tiers: Annotated[dict[TierId, TierSettings], Field(min_length=1)]
    traffic: TrafficSettings
    trouble: TroubleSettings = TroubleSettings()
    controller: SteeringSettings = SteeringSettings()
    loads: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)]
    """Requests a second, for each replica."""
    policies: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
    price_per_replica_hour: Positive | None = None
    currency: Literal["EUR", "USD"] = "USD"

    @property
    def default_tier(self) -> int:
        """The tier that serves requests without one."""
        return next(tier for tier, each in self.tiers.items() if each.default)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(tier.default for tier in self.tiers.values()) != 1:
            raise ValueError("exactly one tier must be the default")
        if unknown := sorted(set(self.traffic.tier_shares) - set(self.tiers)):
            raise ValueError(f"traffic.tier_shares must name tiers of the file (found {unknown})")
        return self


def load_simulate_settings(path: Path) -> SimulateSettings:
    """Read a simulation from a YAML file; files that it names are looked for beside it.

    Raises:
        ConfigError: one or more rules are broken; it lists all of them.
    """
    settings = read_section(path, SimulateSettings)
    changes = {}
    for name, suffix in (("step_times", ".json"), ("texts", ".npz")):
        value = getattr(settings.profile, name)
        if value.endswith(suffix):
            file = path.parent / value
            if not file.exists():
                problem = Problem(
                    f"profile.{name}", "must be a file that is there", value, "Name one beside this file."
                )
                raise ConfigError([problem])
            changes[name] = str(file)
    return settings.model_copy(update={"profile": settings.profile.model_copy(update=changes)})
