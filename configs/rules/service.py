"""Rules on names, tiers, and the timing of supervision. Pure."""

from collections.abc import Iterator

from sparktier.configs.errors import Problem
from sparktier.configs.rules.rule import Rule
from sparktier.configs.settings.settings import Settings


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


def _name_has_no_colon(settings: Settings) -> Iterator[Problem]:
    # SGLang splits `model:adapter` there (sglang/srt/arg_groups/validation_hook.py, 0.5.23).
    name = settings.model.public_name
    if ":" in name:
        yield Problem(
            "model.served_name",
            "must not contain a colon, which separates an adapter's name in requests",
            name,
            "Set it to a name without one.",
        )


RULES = (
    Rule(("model.path", "model.served_name"), _name_has_no_colon),
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
