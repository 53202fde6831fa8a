"""Rules on tiers, and on the timing of supervision. Pure."""

from collections.abc import Iterator

from sparktier.configs.errors import Problem
from sparktier.configs.rule import Rule
from sparktier.configs.settings import Settings


def _one_default_tier(settings: Settings) -> Iterator[Problem]:
    defaults = [tier_id for tier_id, tier in settings.tiers.items() if tier.default]
    if len(defaults) != 1:
        yield Problem(
            "tiers",
            "exactly one tier must have default: true",
            f"{len(defaults)} of {len(settings.tiers)}",
            "Mark the tier that serves requests which name none.",
        )


def _tier_names_differ(settings: Settings) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for tier_id, tier in settings.tiers.items():
        if tier.name in first:
            yield Problem(
                f"tiers.{tier_id}.name",
                f"must differ from the name of tier {first[tier.name]}",
                tier.name,
                "Rename one of them.",
            )
        first.setdefault(tier.name, tier_id)


def _backoff_grows(settings: Settings) -> Iterator[Problem]:
    first, longest = settings.supervision.restart_backoff_first_s, settings.supervision.restart_backoff_max_s
    if first > longest:
        yield Problem(
            "supervision.restart_backoff_first_s",
            f"must not exceed restart_backoff_max_s ({longest})",
            str(first),
            f"Use {longest} or less.",
        )


RULES = (
    Rule(("tiers",), _one_default_tier),
    Rule(("tiers",), _tier_names_differ),
    Rule(
        (
            "supervision.restart_backoff_first_s",
            "supervision.restart_backoff_max_s",
        ),
        _backoff_grows,
    ),
)
