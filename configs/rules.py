"""Every rule between settings, and the one function that applies them. Pure; knows nothing of files."""

from collections.abc import Collection

from sparktier.configs import rules_device, rules_layout, rules_service, rules_speculation, rules_training
from sparktier.configs.errors import Problem
from sparktier.configs.settings import Settings

_ALL = (*rules_layout.RULES, *rules_device.RULES, *rules_speculation.RULES, *rules_training.RULES, *rules_service.RULES)


def broken_rules(settings: Settings, *, wrong_keys: Collection[str] = ()) -> list[Problem]:
    """Return a problem for every broken rule, leaving out the rules that touch one of `wrong_keys` (dotted)."""
    return [problem for rule in _ALL if not rule.touches(wrong_keys) for problem in rule.check(settings)]
