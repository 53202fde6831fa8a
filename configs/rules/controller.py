"""Rules on the controller's clocks and on who holds its lease. Pure."""

from collections.abc import Iterator

from sparktier.configs.errors import Problem
from sparktier.configs.rules.rule import Rule
from sparktier.configs.settings.settings import Settings

_LEAST_TICKS = 3


def _plans_outlive_ticks(settings: Settings) -> Iterator[Problem]:
    controller = settings.controller
    for key in ("ttl_ms", "stale_ms"):
        found = getattr(controller, key)
        if found < _LEAST_TICKS * controller.tick_ms:
            yield Problem(
                f"controller.{key}",
                f"must be at least {_LEAST_TICKS} ticks of {controller.tick_ms} ms: one late answer is no outage",
                str(found),
                f"Use {_LEAST_TICKS * controller.tick_ms} or more, or a shorter tick_ms.",
            )


def _one_lease(settings: Settings) -> Iterator[Problem]:
    controller = settings.controller
    if controller.lease_path is not None and controller.kubernetes_lease is not None:
        yield Problem(
            "controller.kubernetes_lease",
            "must be null where lease_path is given: controllers that hold different leases would both decide",
            controller.kubernetes_lease,
            "Remove one of the two.",
        )


RULES = (
    Rule(("controller",), _plans_outlive_ticks),
    Rule(("controller.lease_path", "controller.kubernetes_lease"), _one_lease),
)
