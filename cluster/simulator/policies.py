"""What decides the rows of a simulated step: the verify planner, and the rivals that it is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparktier.cluster.arrays import Flags, Floats, Ints
from sparktier.cluster.simulator.rival_planners import adaserve_rows, adaserve_tokens, floor_tokens, floored_rows
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, PaceRules, best_total, expected, share_out, weights
from sparktier.configs.errors import ConfigError, Problem

OFF_RUNG = 0
STATIC = "static-"
# AdaServe's n_max: drafted rows that a need may take.
_MOST_NEED_ROWS = 3


@dataclass(frozen=True)
class StepView:
    """What a rank knows of its requests when it plans a step; all [requests], in the order of their slots."""

    lagged: Floats
    """[requests, nodes] survivals of earlier steps, as `usable_survival` returns them."""
    live: Floats
    """[requests, nodes] survivals by which rows are shared out: this step's, or `lagged` again."""
    most_rows: Ints
    promise_tok_s: Floats
    """0: none."""
    since_first_s: Floats
    delivered_tokens: Ints
    context_tokens: int


Rows = Callable[[StepView, StepTimeModel, int], Ints]
"""(a step, what steps cost, rung) -> rows [requests], anchors included."""


class Paced(NamedTuple):
    """How ranks are told of a policy: the planner's rules, and the weight of promised requests."""

    rules: PaceRules
    strict_weight: float = 1.0


_EQUAL = PaceRules(gain=0.0)


@dataclass(frozen=True)
class Policy:
    """A policy by name. `heeds_promises`: whether its rows depend on them; one that doesn't need run only once.

    paced: None where ranks don't have it, so that only a simulation does.
    """

    name: str
    rows: Rows
    heeds_promises: bool = False
    drafts: bool = True
    paced: Paced | None = None


def tiered(rules: PaceRules, *, strict_weight: float = 1.0, name: str = "tiered") -> Policy:
    """Return the verify planner with weights that rise with what a promised request is behind."""

    def rows(view: StepView, times: StepTimeModel, rung: int) -> Ints:
        paced = weights(
            tier_weight=np.where(_promised(view), strict_weight, 1.0),
            promise_tok_s=view.promise_tok_s,
            since_first_s=view.since_first_s,
            delivered_tokens=view.delivered_tokens,
            rules=rules,
        )
        return _planned(view, times, rung, paced)

    return Policy(name, rows, heeds_promises=True, paced=Paced(rules, strict_weight))


def static(weight: float) -> Policy:
    """Return the verify planner with a fixed weight for promised requests."""

    def rows(view: StepView, times: StepTimeModel, rung: int) -> Ints:
        return _planned(view, times, rung, np.where(_promised(view), weight, 1.0))

    return Policy(f"{STATIC}{weight:g}", rows, paced=Paced(_EQUAL, weight))


def policy_of(name: str, rules: PaceRules, *, strict_weight: float) -> Policy:
    """Return the policy of that name; rules and weight are those of `tiered`.

    Raises:
        ConfigError: there is none.
    """
    if name == "tiered":
        return tiered(rules, strict_weight=strict_weight)
    if name in _PLAIN:
        return _PLAIN[name]
    try:
        weight = float(name.removeprefix(STATIC)) if name.startswith(STATIC) else 0.0
    except ValueError:
        weight = 0.0
    if not 0 < weight < np.inf:
        rule = f"must be one of {', '.join([*_PLAIN, 'tiered'])}, or {STATIC} and a weight above 0"
        raise ConfigError([Problem("--policy", rule, name, "Name one of these, as in --policy static-2.")])
    return static(weight)


def names_in_order(names: Sequence[str]) -> list[str]:
    """Return policy names without repeats, `blind` first: its speeds set the promises."""
    return list(dict.fromkeys(["blind", *names]))


def _promised(view: StepView) -> Flags:
    promised: Flags = view.promise_tok_s > 0
    return promised


def _planned(view: StepView, times: StepTimeModel, rung: int, weight: Floats) -> Ints:
    lagged, live = Offers(view.lagged, view.most_rows, weight), Offers(view.live, view.most_rows, weight)
    total = best_total(lagged, times, rung=rung, context_tokens=view.context_tokens)
    return share_out(live, total)


def _off(view: StepView, _times: StepTimeModel, _rung: int) -> Ints:
    return np.ones(len(view.most_rows), dtype=np.int64)


def _chain(view: StepView, _times: StepTimeModel, _rung: int) -> Ints:
    return view.most_rows


def _blind(view: StepView, times: StepTimeModel, rung: int) -> Ints:
    return _planned(view, times, rung, np.ones(len(view.most_rows)))


def _floors(view: StepView, times: StepTimeModel, rung: int) -> Ints:
    need = floor_tokens(
        promise_tok_s=view.promise_tok_s,
        since_first_s=_seconds(view),
        delivered_tokens=view.delivered_tokens,
        step_s=_blind_step_s(view, times, rung),
    )
    offers = Offers(view.live, view.most_rows, np.ones(len(need)))
    return floored_rows(offers, need, times, rung=rung, context_tokens=view.context_tokens)


def _adaserve(view: StepView, times: StepTimeModel, rung: int) -> Ints:
    need = adaserve_tokens(
        promise_tok_s=view.promise_tok_s,
        since_first_s=_seconds(view),
        delivered_tokens=view.delivered_tokens,
        step_s=_blind_step_s(view, times, rung),
    )
    equal = np.ones(len(need))
    lagged = Offers(view.lagged, view.most_rows, equal)
    total = best_total(lagged, times, rung=rung, context_tokens=view.context_tokens)
    live = Offers(view.live, view.most_rows, equal)
    return adaserve_rows(live, need, total=total, most_need_rows=_MOST_NEED_ROWS)


def _seconds(view: StepView) -> Floats:
    seconds: Floats = np.nan_to_num(np.maximum(view.since_first_s, 0.0))
    return seconds


def _blind_step_s(view: StepView, times: StepTimeModel, rung: int) -> float:
    """What the step would take at equal weights: rivals need a time before they know their rows."""
    offers = Offers(view.lagged, view.most_rows, np.ones(len(view.most_rows)))
    rows = share_out(offers, best_total(offers, times, rung=rung, context_tokens=view.context_tokens))
    return expected(offers, rows, times, rung=rung, context_tokens=view.context_tokens).step_ms / 1000.0


_PLAIN = {
    "off": Policy("off", _off, drafts=False, paced=Paced(_EQUAL)),
    "chain": Policy("chain", _chain),
    "blind": Policy("blind", _blind, paced=Paced(_EQUAL)),
    "floors": Policy("floors", _floors, heeds_promises=True),
    "adaserve": Policy("adaserve", _adaserve, heeds_promises=True),
}
