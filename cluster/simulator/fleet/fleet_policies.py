"""Policies of a simulated cluster: what decides rows in an engine, and whether a controller bounds its users."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sparktier.cluster.arrays import Floats, Ints
from sparktier.cluster.policy.policy_types import CHAIN, OFF, SHORT, PolicyConfig
from sparktier.cluster.simulator.policies import StepView, policy_of
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, PaceRules, planned_rows, weights
from sparktier.configs.errors import ConfigError, Problem


class StepTerms(NamedTuple):
    """What configuration and plan say of a step's requests."""

    weight: Floats
    """[requests] of each one's tier."""
    cap_tokens: Ints
    """[requests] drafted tokens at most."""
    row_budget: int
    """0: none."""


FleetRows = Callable[[StepView, StepTimeModel, int, StepTerms], Ints]
"""(a step, what steps cost, rung, its terms) -> rows [requests], anchors included."""
_RULES = PaceRules()


@dataclass(frozen=True)
class FleetPolicy:
    """A policy. `steered`: the controller's depth policy sets rung, rows and caps; else the rung stays.

    `pooled`: each replica serves the tiers of its pool alone. `knows_all`: survivals are what will be accepted.
    """

    name: str
    rows: FleetRows
    rung: int = CHAIN
    steered: bool = False
    pooled: bool = False
    knows_all: bool = False


def fleet_policy(name: str, config: PolicyConfig) -> FleetPolicy:
    """Return the policy of that name. Raises ConfigError where there is none."""
    if name not in POLICIES:
        rule = f"must be one of {', '.join(POLICIES)}"
        raise ConfigError([Problem("--policy", rule, name, "Name one of these.")])
    policy = POLICIES[name]
    rung = min(policy.rung, config.highest_rung) if policy.rung != SHORT else SHORT
    return replace(policy, rung=rung)


def fixed_rung(rung: int) -> FleetPolicy:
    """Return the tier-aware planner on one rung, with nothing that steers."""
    return FleetPolicy(f"rung-{rung}", _tiered, rung=rung)


def _plain(name: str) -> FleetRows:
    policy = policy_of(name, _RULES, strict_weight=1.0)

    def rows(view: StepView, times: StepTimeModel, rung: int, terms: StepTerms) -> Ints:
        return policy.rows(view, times, rung)

    return rows


def _mtp1(view: StepView, times: StepTimeModel, rung: int, terms: StepTerms) -> Ints:
    rows: Ints = np.minimum(view.most_rows, 2)
    return rows


def _tiered(view: StepView, times: StepTimeModel, rung: int, terms: StepTerms) -> Ints:
    """The ranks' planner: weights by tier and by what each request is behind, within the plan's rows."""
    paced = weights(
        tier_weight=terms.weight,
        promise_tok_s=view.promise_tok_s,
        since_first_s=view.since_first_s,
        delivered_tokens=view.delivered_tokens,
        rules=_RULES,
    )
    most_rows = np.ones_like(view.most_rows) if rung == OFF else np.minimum(view.most_rows, 1 + terms.cap_tokens)
    lagged, live = (Offers(of, most_rows, paced) for of in (view.lagged, view.live))
    budget = terms.row_budget or None
    return planned_rows(lagged, live, times, rung=rung, context_tokens=view.context_tokens, row_budget=budget)


def _knowing(view: StepView, times: StepTimeModel, rung: int, terms: StepTerms) -> Ints:
    return _tiered(replace(view, lagged=view.live), times, rung, terms)


def _blind_within(view: StepView, times: StepTimeModel, rung: int, terms: StepTerms) -> Ints:
    if rung == OFF:
        return np.ones_like(view.most_rows)
    equal = np.ones(len(view.most_rows))
    lagged, live = (Offers(of, view.most_rows, equal) for of in (view.lagged, view.live))
    budget = terms.row_budget or None
    return planned_rows(lagged, live, times, rung=rung, context_tokens=view.context_tokens, row_budget=budget)


POLICIES: Mapping[str, FleetPolicy] = {
    each.name: each
    for each in (
        FleetPolicy("off", _plain("off"), rung=OFF),
        FleetPolicy("mtp1", _mtp1, rung=SHORT),
        FleetPolicy("chain", _plain("chain")),
        FleetPolicy("dspark", _plain("blind")),
        FleetPolicy("adaserve", _plain("adaserve")),
        FleetPolicy("floors", _plain("floors")),
        FleetPolicy("depth", _tiered),
        FleetPolicy("admission", _blind_within, steered=True),
        FleetPolicy("pools", _plain("blind"), pooled=True),
        FleetPolicy("oracle", _knowing, steered=True, knows_all=True),
        FleetPolicy("sparktier", _tiered, steered=True),
    )
}
"""By name: `depth` and `admission` are the two halves of `sparktier`, each alone."""
