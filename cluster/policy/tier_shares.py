"""Which users each replica is to have room for: tiers with a promise on light replicas, others packed. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sparktier.cluster.policy.policy_types import PolicyConfig, PolicyState
from sparktier.configs.contracts.signals import Signals

# Room for a quarter more users without a promise than there are, and for half more with one.
_SPARE_PACKED, _SPARE_PROMISED = 1.25, 1.5


class Wanted(NamedTuple):
    """Users that each replica's box grows toward, and how many replicas are packed since when."""

    by_replica: Mapping[str, Mapping[int, int]]
    packed: int
    packed_ms: int


def wanted_users(signals: Mapping[str, Signals], config: PolicyConfig, state: PolicyState, *, now_ms: int) -> Wanted:
    """Return what each replica of `signals`, all believed and serving, is to have room for."""
    names = sorted(signals)
    users = {tier: sum(users_of(each).get(tier, 0) for each in signals.values()) for tier in config.tiers}
    promised = [tier for tier, rule in config.tiers.items() if rule.promise_tok_s is not None]
    others = [tier for tier in config.tiers if tier not in promised]
    if len(names) < 2 or not promised or not others:
        alike = {tier: 1 + -(-count // max(1, len(names))) for tier, count in users.items()}
        return Wanted(dict.fromkeys(names, alike), 0, now_ms)
    most = min(signals[name].max_running or config.most_users for name in names)
    unpromised = sum(users[tier] for tier in others)
    needed = min(len(names) - 1, max(1, -int(-_SPARE_PACKED * unpromised // most)))
    packed, since_ms = _moved(state, needed, len(names), config.hold_ms, now_ms)
    light = len(names) - packed
    spare = {tier: int(_SPARE_PROMISED * users[tier]) // light + 1 for tier in promised}
    overflow = max(0, unpromised - packed * most)
    rest = {tier: -(-overflow * users[tier] // max(1, unpromised) // light) for tier in others}
    on_light = spare | rest
    on_packed = dict.fromkeys(promised, 0) | {tier: users[tier] + 1 for tier in others}
    places: Sequence[Mapping[int, int]] = [on_light] * light + [on_packed] * packed
    return Wanted(dict(zip(names, places, strict=True)), packed, since_ms)


def users_of(signals: Signals) -> dict[int, int]:
    """Return the users by tier that run or wait on a replica."""
    found: dict[int, int] = {}
    for rank in signals.ranks:
        for counts in (rank.running, rank.queued):
            for tier, count in counts.items():
                found[tier] = found.get(tier, 0) + count
    return found


def running_of(signals: Signals) -> dict[int, int]:
    """Return the users by tier that run on a replica."""
    found: dict[int, int] = {}
    for rank in signals.ranks:
        for tier, count in rank.running.items():
            found[tier] = found.get(tier, 0) + count
    return found


def _moved(state: PolicyState, needed: int, replicas: int, hold_ms: int, now_ms: int) -> tuple[int, int]:
    """How many replicas are packed, and since when: a change is held off for `hold_ms` after the last."""
    still_possible = 0 < state.packed < replicas
    if needed == state.packed or (still_possible and now_ms - state.packed_ms < hold_ms):
        return state.packed, state.packed_ms
    return needed, now_ms
