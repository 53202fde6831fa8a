"""The file of `sparktier bench tiers`: users, texts and step times of its cells, and the planner's parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sparktier.cluster.verify_planner import PaceRules
from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.loading.loader import read_section
from sparktier.configs.plan_keys import Rung
from sparktier.configs.settings.section import Section

Frac = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
_DEFAULTS = PaceRules()


class PlannerSettings(Section):
    """Parameters of the policy `tiered`, as docs/policies/verify-planner.md explains them."""

    lead_tokens: Positive = _DEFAULTS.lead_tokens
    lead_s: Annotated[float, Field(ge=0)] = _DEFAULTS.lead_s
    gain: Annotated[float, Field(ge=0)] = _DEFAULTS.gain
    most: Annotated[float, Field(ge=0)] = _DEFAULTS.most
    strict_weight: Positive = 1.0

    @property
    def rules(self) -> PaceRules:
        """Return them as the planner takes them."""
        return PaceRules(self.lead_tokens, self.lead_s, self.gain, self.most)


class TableSettings(Section):
    """One table of step times, and who is served by it."""

    step_times: str
    """A reference table of configs/step_time_tables/."""
    recorded: Annotated[Path, Field(strict=False)] | None = None
    """A file of `sparktier bench record`, beside this one; without it, texts are by the paper's figures."""
    deployment: Annotated[Path, Field(strict=False)] | None = None
    """The settings that it was recorded with, for `--engine`; beside this file."""
    nodes: Annotated[int, Field(ge=1, le=64)]
    """Drafted tokens of one request."""
    rung: Annotated[int, Field(ge=1, le=15)] = 2
    live_shares: bool = True
    policies: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] | None = None
    """In place of the measurement's."""
    users: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
    promise_factors: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)]
    strict_fracs: Annotated[tuple[Frac, ...], Field(min_length=1, strict=False)]
    turns: Annotated[int, Field(ge=1)] = 3
    """Answers of each user that count."""
    prompt_tokens: Annotated[int, Field(ge=0)] | None = None
    """Of every prompt; 0: prefilled elsewhere; without it, the recorded prompt's."""
    kv_tokens: Annotated[int, Field(ge=1)] = 1_000_000_000
    chunk_tokens: Annotated[int, Field(ge=1)] = 8192

    @property
    def drafts(self) -> str:
        """How a file of recorded text calls this way of drafting."""
        return f"tree{self.nodes + 1}" if self.rung == Rung.TREE else f"chain{self.nodes}"


class TiersSettings(Section):
    """A whole measurement."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
    policies: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    planner: PlannerSettings = PlannerSettings()
    tables: Annotated[dict[str, TableSettings], Field(min_length=1)]

    def policies_of(self, table: str) -> tuple[str, ...]:
        """Return the policies that are compared on a table."""
        return self.tables[table].policies or self.policies

    def narrowed(
        self,
        *,
        policies: Sequence[str] | None,
        promise_factors: Sequence[float] | None,
        strict_fracs: Sequence[float] | None,
        seeds: Sequence[int] | None,
        tables: Sequence[str] | None,
    ) -> "TiersSettings":
        """Return the measurement with these values in place of its own, where they are given.

        Raises:
            ConfigError: it has no such table.
        """
        for name in tables or []:
            if name not in self.tables:
                rule = f"must be a table of the file: {', '.join(self.tables)}"
                raise ConfigError([Problem("--table", rule, name, "Name one of these.")])
        asked = {"promise_factors": promise_factors, "strict_fracs": strict_fracs, "policies": policies}
        changes = {key: tuple(values) for key, values in asked.items() if values}
        return self.model_copy(
            update={
                "seeds": tuple(seeds or self.seeds),
                "tables": {
                    name: table.model_copy(update=changes)
                    for name, table in self.tables.items()
                    if not tables or name in tables
                },
            }
        )


def load_tiers_settings(path: Path) -> TiersSettings:
    """Read a measurement from a YAML file.

    Raises:
        ConfigError: one or more rules are broken; it lists all of them.
    """
    settings = read_section(path, TiersSettings)
    return settings.model_copy(
        update={"tables": {name: _beside(path, table) for name, table in settings.tables.items()}}
    )


def _beside(path: Path, table: TableSettings) -> TableSettings:
    named = {"recorded": table.recorded, "deployment": table.deployment}
    return table.model_copy(update={key: path.parent / file for key, file in named.items() if file is not None})
