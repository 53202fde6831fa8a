"""What the policy is told of a configuration."""

from pathlib import Path

import pytest

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import settings_from
from sparktier.configs.settings.settings import Settings
from sparktier.serving.controller.policy_setup import policy_config, step_times

MODEL = {"path": "/m"}


def settings(**sections: object) -> Settings:
    return settings_from({"model": MODEL, **sections})


@pytest.mark.parametrize(
    ("speculation", "drafted"),
    [
        ({"method": "none"}, {0: 0}),
        ({"method": "chain", "draft_path": "/d", "block_tokens": 4}, {0: 0, 1: 2, 2: 4}),
        ({"method": "tree", "draft_path": "/d", "block_tokens": 6}, {0: 0, 1: 2, 2: 6, 3: 6}),
        ({"method": "standalone", "draft_path": "/d", "block_tokens": 3}, {0: 0}),
    ],
    ids=lambda value: value.get("method") if isinstance(value, dict) else None,
)
def test_the_rungs_are_those_of_the_method(speculation: dict[str, object], drafted: dict[int, int]) -> None:
    assert policy_config(settings(speculation=speculation)).drafted == drafted


def test_tiers_and_clocks_are_the_operators() -> None:
    tiers = {3: {"name": "a", "default": True, "promise_tok_s": 9.0, "weight": 2.0, "cap_users": 4, "ttft_ms": 900}}
    config = policy_config(settings(tiers=tiers, controller={"tick_ms": 500, "hold_ms": 7000, "ttl_ms": 4000}))
    rule = config.tiers[3]
    assert (rule.promise_tok_s, rule.weight, rule.cap_users, rule.ttft_ms) == (9.0, 2.0, 4, 900)
    assert (config.default_tier, config.hold_ms, config.ttl_ms, config.probe_every_ms) == (3, 7000, 4000, 50_000)
    assert config.most_users == 48


def test_without_a_path_there_are_no_step_times() -> None:
    assert step_times(settings()) is None


@pytest.mark.parametrize(
    ("controller", "where"),
    [
        ({"tick_ms": 5000}, "controller.ttl_ms"),
        ({"tick_ms": 5000, "ttl_ms": 15_000}, "controller.stale_ms"),
        ({"lease_path": str(Path("/l")), "kubernetes_lease": "a/b"}, "controller.kubernetes_lease"),
    ],
    ids=["time to live", "stale", "two leases"],
)
def test_what_can_not_be_is_refused(controller: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        settings(controller=controller)
