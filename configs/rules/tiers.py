"""Rules on tiers: which exist, where a downgrade leads, and what a reload may change. Pure."""

from collections.abc import Iterator, Mapping

from sparktier.configs.errors import Problem
from sparktier.configs.rules.rule import Rule
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.tiers import TierSettings


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


def _downgrade_has_a_target(settings: Settings) -> Iterator[Problem]:
    names = sorted(tier.name for tier in settings.tiers.values())
    for tier_id, tier in settings.tiers.items():
        path = f"tiers.{tier_id}.downgrade_to"
        if tier.on_full == "downgrade" and tier.downgrade_to is None:
            yield Problem(path, "must be given with on_full: downgrade", "null", f"Name one of {names}.")
        if tier.on_full != "downgrade" and tier.downgrade_to is not None:
            cure = "Set on_full: downgrade, or remove it."
            yield Problem(path, f"has no meaning with on_full: {tier.on_full}", tier.downgrade_to, cure)
        elif tier.downgrade_to is not None and tier.downgrade_to not in names:
            yield Problem(path, "must be the name of a tier", tier.downgrade_to, f"Name one of {names}.")


def _downgrades_promise_less(settings: Settings) -> Iterator[Problem]:
    """A promise that falls with every step also keeps downgrades from leading in a circle."""
    by_name = {tier.name: tier for tier in settings.tiers.values()}
    for tier_id, tier in settings.tiers.items():
        target = by_name.get(tier.downgrade_to or "")
        if tier.on_full != "downgrade" or target is None:
            continue
        path = f"tiers.{tier_id}.downgrade_to"
        if tier.name in (circle := _downgrades(target, by_name)):
            found = " -> ".join([tier.name, *circle[: circle.index(tier.name) + 1]])
            yield Problem(path, "must not lead back to the tier itself", found, "Let the last of them queue or reject.")
        elif target.promised_tok_s >= tier.promised_tok_s:
            yield Problem(
                path,
                f"must promise less than the tier itself, which promises {tier.promised_tok_s:g} tok/s",
                f"{target.name} at {target.promised_tok_s:g} tok/s",
                "Name a slower tier, or let this one queue or reject.",
            )


def _downgrades(first: TierSettings, by_name: Mapping[str, TierSettings]) -> list[str]:
    """Return the names of the tiers that downgrades lead to from `first` on, each once."""
    names: list[str] = []
    tier: TierSettings | None = first
    while tier is not None and tier.name not in names:
        names.append(tier.name)
        tier = by_name.get(tier.downgrade_to or "") if tier.on_full == "downgrade" else None
    return names


def _stalls_need_step_times(settings: Settings) -> Iterator[Problem]:
    for tier_id, tier in settings.tiers.items():
        if tier.max_stall_ms is not None and settings.speculation.step_times_path is None:
            yield Problem(
                f"tiers.{tier_id}.max_stall_ms",
                "has no meaning without speculation.step_times_path",
                str(tier.max_stall_ms),
                "Remove it, or measure step times with `sparktier profile` and name their file.",
            )


def _who_yields_has_no_promise(settings: Settings) -> Iterator[Problem]:
    for tier_id, tier in settings.tiers.items():
        if tier.yields and tier.promise_tok_s is not None:
            yield Problem(
                f"tiers.{tier_id}.yields",
                "must be false for a tier with a promise, which a request put back into the queue would miss",
                "true",
                "Remove it, or set promise_tok_s: null.",
            )


def _who_yields_can_be_put_back(settings: Settings) -> Iterator[Problem]:
    """Answers that go on after it were compared with undisturbed ones for these methods and one attention group."""
    method, groups = settings.speculation.method, settings.replicas.attention_data_parallel
    for tier_id, tier in settings.tiers.items():
        path = f"tiers.{tier_id}.yields"
        if tier.yields and method in ("standalone", "dspark_native"):
            rule = f"must be false with speculation.method: {method}, whose requests are not put back into the queue"
            yield Problem(path, rule, "true", "Remove it, or set speculation.method to none, chain or tree.")
        if tier.yields and groups > 1:
            rule = "must be false with several attention groups, each of which would count seats by itself"
            yield Problem(path, rule, "true", "Remove it, or set replicas.attention_data_parallel: 1.")


RULES = (
    Rule(("tiers",), _one_default_tier),
    Rule(("tiers",), _tier_names_differ),
    Rule(("tiers",), _downgrade_has_a_target),
    Rule(("tiers",), _downgrades_promise_less),
    Rule(("tiers",), _who_yields_has_no_promise),
    Rule(("tiers", "speculation.method", "replicas.attention_data_parallel"), _who_yields_can_be_put_back),
    Rule(("tiers", "speculation"), _stalls_need_step_times),
)
