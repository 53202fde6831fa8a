"""What a reload of the configuration does to the tiers of a running deployment. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.tiers import TierSettings

Tiers = Mapping[int, TierSettings]


@dataclass(frozen=True)
class TierBook:
    """The tiers in force, and the names that ids have had since the start: an id never names another tier."""

    tiers: Tiers
    names: Mapping[int, str]
    may_yield: bool

    @classmethod
    def of(cls, tiers: Tiers) -> "TierBook":
        """Return the book of a deployment that starts with `tiers`; engines are told at their start if one yields."""
        names = {tier_id: tier.name for tier_id, tier in tiers.items()}
        return cls(tiers, names, any(tier.yields for tier in tiers.values()))

    def reloaded(self, tiers: Tiers) -> "TierBook":
        """Return the book with `tiers` in force. Raises ConfigError for what may not change while it runs."""
        problems = [*self._other_names(tiers), *self._new_yields(tiers)]
        if problems:
            raise ConfigError(problems)
        names = {**self.names, **{tier_id: tier.name for tier_id, tier in tiers.items()}}
        return TierBook(tiers, names, self.may_yield)

    def _new_yields(self, tiers: Tiers) -> Iterator[Problem]:
        for tier_id, tier in tiers.items():
            if tier.yields and not self.may_yield:
                rule = "must be false in a deployment that has started without a tier that yields"
                yield Problem(f"tiers.{tier_id}.yields", rule, "true", "Start the deployment anew with it.")

    def _other_names(self, tiers: Tiers) -> Iterator[Problem]:
        for tier_id, tier in tiers.items():
            name = self.names.get(tier_id, tier.name)
            if name != tier.name:
                rule = f"must stay {name}: requests and metrics of this run know id {tier_id} by that name"
                yield Problem(f"tiers.{tier_id}.name", rule, tier.name, "Give the new tier an id of its own.")


def changes(before: Tiers, after: Tiers) -> list[str]:
    """Return a line for each key of a tier that `after` changes, and for each tier that comes or goes."""
    found = []
    for tier_id in sorted({*before, *after}):
        old, new = before.get(tier_id), after.get(tier_id)
        if new is None:
            found.append(f"tier {tier_id} ({before[tier_id].name}) is gone; its id stays reserved")
        elif old is None:
            found.append(f"tier {tier_id} ({new.name}) is new: {new.model_dump(exclude_defaults=True)}")
        else:
            pairs = zip(old.model_dump().items(), new.model_dump().values(), strict=True)
            found += [f"tier {tier_id} ({new.name}): {key} {was} -> {now}" for (key, was), now in pairs if was != now]
    return found


def waiting_sections(before: Settings, after: Settings) -> list[str]:
    """Return the sections besides `tiers` that `after` changes; a reload leaves them as they are."""
    names = [name for name in Settings.model_fields if name != "tiers"]
    return [name for name in names if getattr(before, name) != getattr(after, name)]
