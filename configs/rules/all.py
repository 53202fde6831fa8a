"""Every rule between settings, and the one function that applies them."""

from collections.abc import Collection

from sparktier.configs.errors import Problem
from sparktier.configs.rules import controller as rules_controller
from sparktier.configs.rules import device as rules_device
from sparktier.configs.rules import layout as rules_layout
from sparktier.configs.rules import service as rules_service
from sparktier.configs.rules import speculation as rules_speculation
from sparktier.configs.rules import tiers as rules_tiers
from sparktier.configs.rules import training as rules_training
from sparktier.configs.settings.settings import Settings

_ALL = (
    *rules_layout.RULES,
    *rules_device.RULES,
    *rules_speculation.RULES,
    *rules_training.RULES,
    *rules_tiers.RULES,
    *rules_service.RULES,
    *rules_controller.RULES,
)


def broken_rules(settings: Settings, *, wrong_keys: Collection[str] = ()) -> list[Problem]:
    """Return a problem for every broken rule, leaving out the rules that touch one of `wrong_keys` (dotted)."""
    return [problem for rule in _ALL if not rule.touches(wrong_keys) for problem in rule.check(settings)]
