"""Rules on the served name and the timing of supervision. Pure."""

from collections.abc import Iterator

from sparktier.configs.errors import Problem
from sparktier.configs.rules.rule import Rule
from sparktier.configs.settings.settings import Settings


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
    Rule(
        (
            "supervision.restart_backoff_first_s",
            "supervision.restart_backoff_max_s",
        ),
        _backoff_grows,
    ),
)
