"""Which speeds a replica can give its users, and how many users of each tier, by the model of its steps. Pure.

The formulas, and why every smaller mix of users is feasible too, are in docs/policies/depth.md.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from sparktier.cluster.arrays import Flags, Floats, Ints
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import LEAST_SURVIVAL, PaceRules, best_total_of

Mix = Mapping[int, int]
"""Users by tier."""
# One user of twenty has text as hard as the 5th percentile's.
_USERS_TO_ONE_HARD = 20
# How far behind the promised tiers are, in parts of the most that counts.
_LEVELS = (0.0, 0.5, 1.0)
_SETTLED_LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_MOST_TRIES = 4
_LEAST_GROWTH = 0.005
_LEAST_SPREAD_FRAC = 0.01
# The normal distribution, in distances between its median and its 5th percentile.
_ABOVE = np.linspace(0.0, 3.0, 61)
_CHANCES = np.array([NormalDist().cdf(-NormalDist().inv_cdf(0.05) * each) for each in _ABOVE])


@dataclass(frozen=True)
class TierText:
    """How likely a tier's drafts are accepted: [nodes] survivals of a typical user and of one at the 5th percentile."""

    survival: Floats
    hard_survival: Floats
    spread_frac: float = 0.2
    """How many fewer tokens a step the user at the 5th percentile gets than the median, a share of the median's."""


@dataclass(frozen=True)
class TierTarget:
    """What a tier is to get. None: nothing promised, or no bound."""

    promise_tok_s: float | None = None
    weight: float = 1.0
    ttft_ms: int | None = None
    max_stall_ms: int | None = None
    cap_tokens: int | None = None
    most_users: int | None = None


@dataclass(frozen=True)
class ReplicaFacts:
    """A replica on one rung: its step times, its users' texts by tier, and what it has room for.

    `context_tokens` and `prompt_tokens` are of one user; `prefill_frac` is the part of its time that prefill takes,
    `stall_ms` the time of one prefill step; `kv_tokens` None bounds nothing.
    """

    times: StepTimeModel
    rung: int
    texts: Mapping[int, TierText]
    most_users: int
    kv_tokens: int | None = None
    context_tokens: int = 0
    prompt_tokens: int = 0
    prefill_frac: float = 0.0
    stall_ms: float = 0.0


class Region:
    """The mixes of users that a replica can serve as promised, and the boxes inside it.

    `evaluations` counts the questions that were put to the planner.

    Args:
        facts: of the replica.
        targets: of each tier; every one has a text in `facts`.
        toward: users that are wanted. The planner is asked about mixes of this kind, of one user up to all.
        rules: how far weights rise.
        margin_frac: how much more than its promise a tier is planned to get.
    """

    def __init__(
        self,
        facts: ReplicaFacts,
        targets: Mapping[int, TierTarget],
        toward: Mix,
        *,
        rules: PaceRules,
        margin_frac: float,
    ) -> None:
        self._facts, self._targets, self._rules = facts, targets, rules
        self.margin_frac = margin_frac
        self._tiers = sorted(targets)
        self._promised = np.array([targets[tier].promise_tok_s or 0.0 for tier in self._tiers])
        self._spreads = np.array([facts.texts[tier].spread_frac for tier in self._tiers])
        self._by_promise = np.argsort(-self._promised, kind="stable")
        budgets = [targets[tier].ttft_ms for tier in self._tiers]
        self._ttft_ms = np.array([np.inf if budget is None else budget for budget in budgets])
        self._bounds = np.array([_bound(targets[tier].most_users, facts.most_users) for tier in self._tiers])
        shares = list(_shares(facts, targets, toward, rules))
        self.evaluations = len(shares)
        self._rows = np.array([share.rows for share in shares])  # [shares, tiers]
        self._hard_rows = np.array([share.hard_rows for share in shares])
        self._tokens = np.array([share.tokens for share in shares])
        self._least_tokens = np.array([share.least_tokens for share in shares])

    def feasible(self, mix: Mix) -> bool:
        """Return whether all promises can be kept with `mix`. If they can, they can with every smaller one."""
        users = self._users(mix)
        return self._has_room(users) and bool(np.any(self._keeps(users)))

    def box(self, wanted: Mix) -> dict[int, int]:
        """Return caps by tier whose every corner is feasible, and none of which can be raised alone.

        They grow along `wanted`, then tier by tier, the highest promise first.
        """
        users = self._users(wanted)
        total = max(1, int(users.sum()))
        # 1. As many as fit in the proportion that is wanted; a smaller number never gives more of any tier.
        along = self._largest(lambda count: users * count // total)
        found = users * along // total
        # 2. What room is left, tier by tier.
        for place in self._by_promise:
            unit = np.zeros(len(found), dtype=np.int64)
            unit[place] = 1
            rest: Ints = found - found[place] * unit
            found = rest + self._largest(lambda count, rest=rest, unit=unit: rest + count * unit) * unit  # type: ignore[misc]
        return {tier: int(count) for tier, count in zip(self._tiers, found, strict=True)}

    def most_kept_box(self, wanted: Mix) -> dict[int, int]:
        """Return the users along `wanted` of whom most are expected to keep their promise, though others miss it.

        Of equal numbers the largest mix; no users where the median user of every tier misses.
        """
        users, mixes = self._users(wanted), []
        for count in range(1, self._facts.most_users + 1):
            mix = self._along(users, count)
            if not self._has_room(mix):
                break
            mixes.append(mix)
        kept = self._kept_users(np.array(mixes)) if mixes else np.zeros(0)
        if not kept.any():
            return dict.fromkeys(self._tiers, 0)
        best = mixes[int(np.flatnonzero(kept == kept.max())[-1])]
        return {tier: int(each) for tier, each in zip(self._tiers, best, strict=True)}

    def along(self, wanted: Mix, count: int) -> dict[int, int]:
        """Return `count` users as near as can be to the proportion of `wanted`, the highest promise first."""
        mix = self._along(self._users(wanted), count)
        return {tier: int(each) for tier, each in zip(self._tiers, mix, strict=True)}

    def has_room(self, mix: Mix) -> bool:
        """Return whether places, KV and stalls allow `mix`, whatever its speed."""
        return self._has_room(self._users(mix))

    def kept_users(self, mix: Mix) -> float:
        """Return how many users of `mix` are expected to keep their promise, those without one left aside."""
        return float(self._kept_users(self._users(mix)[None])[0])

    def shortfall_frac(self, mix: Mix) -> float:
        """Return what the worst promise lacks under the planner's own choice for `mix`, a share of it; 0 if none does.

        Users of typical text are just so far behind that they get their promise: that is where weights settle.
        """
        users = self._users(mix)
        promised = (self._promised > 0) & (users > 0)
        if not np.any(promised):
            return 0.0
        for level in _SETTLED_LEVELS:
            kinds = _kinds_of(self._facts, self._targets, self._tiers, _missing(level, self._rules))
            share = _share_at(self._facts, kinds, users)
            self.evaluations += 1
            rows = share.rows[None], share.hard_rows[None]
            typical = self._speeds(users, *rows, share.tokens[None])[0]
            slower = self._speeds(users, *rows, share.least_tokens[None])[0]
            if np.all(typical[promised] >= self._promised[promised]):
                break
        return max(0.0, 1.0 - float(np.min(slower[promised] / self._promised[promised])))

    def rows_of(self, mix: Mix) -> int | None:
        """Return the most rows of a step that keeps all promises of `mix`; None if none does."""
        users = self._users(mix)
        keeps = self._keeps(users)
        rows = _total_rows(users, self._rows, self._hard_rows)
        return int(np.max(rows[keeps])) if np.any(keeps) else None

    def _largest(self, mix_of: Callable[[int], Ints]) -> int:
        """The largest count, of all users at most, whose mix is feasible; mixes grow with it, and that of 0 is."""
        counts = range(1, self._facts.most_users + 1)
        return bisect_right(counts, False, key=lambda count: not self._fits(mix_of(count)))

    def _users(self, mix: Mix) -> Ints:
        return np.array([max(0, mix.get(tier, 0)) for tier in self._tiers], dtype=np.int64)

    def _fits(self, users: Ints) -> bool:
        return self._has_room(users) and bool(np.any(self._keeps(users)))

    def _has_room(self, users: Ints) -> bool:
        facts, total = self._facts, int(users.sum())
        held = total * facts.context_tokens
        if total > facts.most_users or np.any(users > self._bounds) or held > (facts.kv_tokens or held):
            return False
        stalls = [self._targets[tier].max_stall_ms for tier, count in zip(self._tiers, users, strict=True) if count]
        return total < 2 or all(stall is None or facts.stall_ms <= stall for stall in stalls)

    def _along(self, wanted: Ints, count: int) -> Ints:
        mix = np.zeros_like(wanted)
        if wanted.any():
            mix[self._by_promise] = _proportional(wanted[self._by_promise], count)
        return mix

    def _kept_users(self, mixes: Ints) -> Floats:
        """[mixes] the users of each mix [mixes, tiers] who are expected to keep their promise, in its best share."""
        promised = self._promised > 0
        step_ms = np.array([self._step_ms(users, self._rows, self._hard_rows) for users in mixes])
        speeds = self._speeds_in(step_ms, self._tokens)[..., promised]
        chances = chance_kept(speeds / self._promised[promised], self._spreads[promised])
        kept = (chances * mixes[:, None, promised]).sum(axis=2) * self._in_time(mixes, step_ms)
        most: Floats = kept.max(axis=1)
        return most

    def _in_time(self, users: Ints, step_ms: Floats) -> Flags:
        """[..., shares] whether first tokens come within the `ttft_ms` of all tiers that have `users` [..., tiers]."""
        facts = self._facts
        first_ms = step_ms + facts.times.prefill_ms(facts.prompt_tokens) / max(1.0 - facts.prefill_frac, 1e-3)
        limits_ms = np.where(users > 0, self._ttft_ms, np.inf).min(axis=-1, keepdims=True)
        in_time: Flags = first_ms <= limits_ms
        return in_time

    def _step_ms(self, users: Ints, rows: Floats, hard_rows: Floats) -> Floats:
        facts, total = self._facts, int(users.sum())
        return facts.times.step_ms(
            rung=facts.rung,
            requests=total,
            rows=_total_rows(users, rows, hard_rows),
            context_tokens=total * facts.context_tokens,
        )

    def _speeds(self, users: Ints, rows: Floats, hard_rows: Floats, least_tokens: Floats) -> Floats:
        """[shares, tiers] tokens a second of the slower users of each tier."""
        step_ms = self._step_ms(users, rows, hard_rows)
        return self._speeds_in(step_ms, least_tokens)

    def _speeds_in(self, step_ms: Floats, least_tokens: Floats) -> Floats:
        """[..., shares, tiers] tokens a second where steps take `step_ms` [..., shares]."""
        speeds: Floats = 1000.0 * least_tokens * (1.0 - self._facts.prefill_frac) / step_ms[..., None]
        return speeds

    def _keeps(self, users: Ints) -> Flags:
        """[shares] whether a way of sharing rows keeps the promises of all tiers that have `users`."""
        present = users > 0
        if not present.any():
            return np.ones(len(self._rows), dtype=np.bool_)
        step_ms = self._step_ms(users, self._rows, self._hard_rows)
        speeds = self._speeds_in(step_ms, self._least_tokens)
        kept = (speeds >= (1.0 + self.margin_frac) * self._promised * present).all(axis=1)
        keeps: Flags = kept & self._in_time(users, step_ms)
        return keeps


class Box(NamedTuple):
    """Caps by tier, the most rows of a step by which they were judged, and what they cost in questions."""

    caps: dict[int, int]
    rows: int | None
    region: Region


def box_of(
    facts: ReplicaFacts,
    targets: Mapping[int, TierTarget],
    wanted: Mix,
    *,
    rules: PaceRules,
    margin_frac: float,
    most_kept: bool = False,
) -> Box:
    """Return a maximal box of users along `wanted`, in which the planner keeps every promise in its largest mix.

    Where it doesn't, by its own choice of rows, the margin grows by what is missing, and the box is made again: at most
    `most_evaluations(facts.most_users)` questions to the planner in all. With `most_kept` a user who is refused counts
    as one whose promise is missed, and the box is given up where it turns away users most of whom would keep theirs.
    Other arguments are those of `Region`.
    """
    region = Region(facts, targets, wanted, rules=rules, margin_frac=margin_frac)
    caps = region.box(wanted)
    for _ in range(_MOST_TRIES):
        missing = region.shortfall_frac(caps)
        if missing == 0.0:
            break
        region.margin_frac += missing + _LEAST_GROWTH
        caps = region.box(wanted)
    if most_kept:
        larger = region.most_kept_box(wanted)
        let_in = {tier: min(count, caps[tier]) for tier, count in larger.items()}
        if region.kept_users(larger) > region.kept_users(let_in):
            caps = larger
    return Box(caps, region.rows_of(caps), region)


def chance_kept(speed_over_promise: Floats, spread_frac: Floats) -> Floats:
    """Return how likely a user keeps a promise, by the speed of the median user over the promise.

    Speeds of users are taken for normal, with the 5th percentile `spread_frac` of the median below it. Less than one in
    two counts as none: others would give way to users most of whom miss theirs.
    """
    # How far the median is above the promise, in distances between the median and the 5th percentile.
    with np.errstate(divide="ignore"):
        above = (1.0 - 1.0 / speed_over_promise) / np.maximum(spread_frac, _LEAST_SPREAD_FRAC)
    chances: Floats = np.where(above < 0.0, 0.0, np.interp(above, _ABOVE, _CHANCES))
    return chances


def most_evaluations(most_users: int) -> int:
    """Return how many questions `box_of` puts to the planner at most."""
    return len(_LEVELS) * len(_loads(most_users)) + _MOST_TRIES * len(_SETTLED_LEVELS)


def _total_rows(users: Ints, rows: Floats, hard_rows: Floats) -> Ints:
    """[shares] rows of a step with `users` [tiers]; more users bring more rows, those of hard text among them."""
    hard = -(-users // _USERS_TO_ONE_HARD)
    # Sums of the same parts in another order differ by rounding errors.
    exact: Floats = rows @ (users - hard) + hard_rows @ hard
    total: Ints = np.ceil(exact - 1e-6).astype(np.int64)
    return total


@dataclass(frozen=True)
class _Share:
    """A way of sharing rows: [tiers] rows of a user and of one of hard text, tokens a step of the first, and the least
    of either.
    """

    rows: Floats
    hard_rows: Floats
    tokens: Floats
    least_tokens: Floats


def _shares(facts: ReplicaFacts, targets: Mapping[int, TierTarget], toward: Mix, rules: PaceRules) -> Iterator[_Share]:
    """Ask the planner, at loads up to the whole replica and with promised tiers ever further behind."""
    tiers = sorted(targets)
    wanted = np.array([max(0, toward.get(tier, 0)) for tier in tiers], dtype=np.int64)
    wanted = wanted if wanted.sum() else np.ones(len(tiers), dtype=np.int64)
    kinds = {level: _kinds_of(facts, targets, tiers, _missing(level, rules)) for level in _LEVELS}
    for load in _loads(facts.most_users):
        users = _proportional(wanted, load)
        for level in _LEVELS:
            yield _share_at(facts, kinds[level], users)


def _missing(level: float, rules: PaceRules) -> tuple[float, float]:
    """The factors of weights of typical and hard users of a promised tier."""
    return 1.0 + rules.gain * rules.most * level, 1.0 + rules.gain * rules.most


class _Kinds(NamedTuple):
    """Users of typical and of hard text of each tier, in turn: [kinds, nodes] survivals and what each node is worth."""

    survival: Floats
    values: Floats
    """-1: never verified."""
    weight: Floats
    """[kinds]."""
    order: Ints
    """[kinds * nodes] the places of nodes by falling value."""
    falling: Floats
    """[kinds * nodes] those values, 0 of nodes that are never verified."""


def _kinds_of(
    facts: ReplicaFacts, targets: Mapping[int, TierTarget], tiers: list[int], factors: tuple[float, float]
) -> _Kinds:
    kinds = []
    for tier in tiers:
        text, target = facts.texts[tier], targets[tier]
        raised = factors if target.promise_tok_s else (1.0, 1.0)
        kinds.append((text.survival, target.weight * raised[0], target.cap_tokens))
        kinds.append((text.hard_survival, target.weight * raised[1], target.cap_tokens))
    survival = np.array([each for each, _, _ in kinds])
    weight = np.array([each for _, each, _ in kinds])
    nodes = survival.shape[1]
    most_nodes = np.array([nodes if cap is None else cap for _, _, cap in kinds], dtype=np.int64)
    allowed = (survival >= LEAST_SURVIVAL) & (np.arange(nodes) < most_nodes[:, None])
    values = np.where(allowed, survival * weight[:, None], -1.0)
    order = np.argsort(-values.ravel(), kind="stable")
    return _Kinds(survival, values, weight, order, np.maximum(values.ravel()[order], 0.0))


def _share_at(facts: ReplicaFacts, kinds: _Kinds, users: Ints) -> _Share:
    """The nodes that are worth at least as much as the last one that the planner verifies for `users` [tiers]."""
    counts = np.empty(2 * len(users), dtype=np.int64)
    counts[1::2] = -(-users // _USERS_TO_ONE_HARD)
    counts[0::2] = users - counts[1::2]
    # 1. The value of every node of all users, falling: nodes of a kind are worth the same.
    falling = np.repeat(kinds.falling, counts[kinds.order // kinds.values.shape[1]])
    total_users = int(users.sum())
    total = best_total_of(
        falling,
        np.repeat(kinds.weight, counts),
        facts.times,
        rung=facts.rung,
        context_tokens=total_users * facts.context_tokens,
    )
    # 2. How often each is verified.
    verified = _verified(kinds.values, counts, falling, total - total_users)
    rows = 1.0 + verified.sum(axis=1)
    tokens = 1.0 + (verified * kinds.survival).sum(axis=1)
    return _Share(rows[0::2], rows[1::2], tokens[0::2], np.minimum(tokens[0::2], tokens[1::2]))


def _verified(values: Floats, counts: Ints, falling: Floats, drafted: int) -> Floats:
    """[kinds, nodes] how often each node of a kind's users is verified, where the `drafted` first of `falling` are.

    Nodes as valuable as the last one take turns: leads of their users differ a little from step to step.
    """
    if drafted <= 0:
        return np.zeros_like(values)
    last = falling[drafted - 1]
    above, equal = values > last, values == last
    turns = (drafted - counts @ above.sum(axis=1)) / (counts @ equal.sum(axis=1))
    often: Floats = np.where(above, 1.0, np.where(equal, turns, 0.0))
    return often


def _loads(most_users: int) -> list[int]:
    """1, 2, 4, ... and `most_users`."""
    return sorted({most_users, *(1 << place for place in range(most_users.bit_length()))} - {0})


def _proportional(wanted: Ints, load: int) -> Ints:
    """`load` users as near as can be to the proportion of `wanted`."""
    exact = wanted * load / wanted.sum()
    users: Ints = np.floor(exact).astype(np.int64)
    largest = np.argsort(users - exact, kind="stable")[: load - int(users.sum())]
    users[largest] += 1
    return users


def _bound(own: int | None, most_users: int) -> int:
    return most_users if own is None else min(own, most_users)


def fastest_alone_tok_s(times: StepTimeModel, drafted_tokens: Mapping[int, int]) -> float:
    """Return a speed that no user exceeds: one alone, on the best rung, whose drafts are all accepted.

    Args:
        times: of a step.
        drafted_tokens: tokens in a row that each rung drafts at most; 0 where it drafts none.
    """
    speeds = []
    for rung, most in drafted_tokens.items():
        # `tokens` of a step need as many rows: the drafted ones before the last, and the anchor.
        tokens = np.arange(1, most + 2, dtype=np.int64)
        speeds.append(float(np.max(1000.0 * tokens / times.step_ms(rung=rung, requests=1, rows=tokens))))
    return max(speeds)


def largest_chunk_tokens(times: StepTimeModel, *, max_stall_ms: float, unit_tokens: int, most_tokens: int) -> int:
    """Return the most prompt tokens whose prefill takes at most `max_stall_ms`, in whole units; 0 where none do.

    Args:
        times: of a step; more tokens never take less.
        max_stall_ms: longest time of one chunk, in which no user gets a token.
        unit_tokens: chunks are multiples of it.
        most_tokens: bound of the answer.
    """
    units = range(1, most_tokens // unit_tokens + 1)
    fitting = bisect_right(units, max_stall_ms, key=lambda count: times.prefill_ms(count * unit_tokens))
    return fitting * unit_tokens
