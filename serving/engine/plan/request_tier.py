"""A request's tier: the one it names if the plan in force knows it, and the terms that it was admitted with."""

from typing import Any, NamedTuple

from sparktier.configs.plan_keys import EnginePlan
from sparktier.serving.engine.rank_options import asked_tier, names_a_tier


class Admitted(NamedTuple):
    """What a request keeps from its admission on, whatever plans follow. A promise of 0 is none."""

    tier: int
    promise_tok_s: float
    weight: float


def admitted(request: Any, plan: EnginePlan) -> Admitted:
    """Return the terms of SGLang's `request`: those of `plan` at the first call, when its prompt is prefilled."""
    kept: Admitted | None = getattr(request, "sparktier_admitted", None)
    if kept is None:
        tier = _named_tier(request, plan)
        terms = plan.tiers[tier]
        kept = Admitted(tier, terms.promise_tok_s or 0.0, terms.weight)
        # Kept on the request: one that is retracted, or prefilled in chunks, comes by again.
        request.sparktier_admitted = kept
    return kept


def tier_of(request: Any, plan: EnginePlan) -> int:
    """Return the tier of SGLang's `request`, admitted or still waiting."""
    kept: Admitted | None = getattr(request, "sparktier_admitted", None)
    return _named_tier(request, plan) if kept is None else kept.tier


def is_unknown(request: Any, plan: EnginePlan) -> bool:
    """Whether SGLang's `request` names a tier that `plan` doesn't list; it is served as the default one."""
    params = request.sampling_params.custom_params
    return names_a_tier(params) and asked_tier(params) not in plan.tiers


def _named_tier(request: Any, plan: EnginePlan) -> int:
    asked = asked_tier(request.sampling_params.custom_params)
    return plan.default_tier if asked is None or asked not in plan.tiers else asked
