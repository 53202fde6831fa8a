"""Simulated replicas behind a gateway that admits by the plan's caps, steered by the depth policy in virtual time."""

import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparktier.cluster.depth_policy import decide
from sparktier.cluster.policy.policy_types import PolicyConfig, PolicyState, Received
from sparktier.cluster.simulator.policies import Policy, StepView
from sparktier.cluster.simulator.sim_engine import Ended, EngineLimits, SimEngine, SimRequest, SimStep
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, PaceRules, best_total, share_out, weights
from sparktier.configs.contracts.plan import Plan, ReplicaPlan
from sparktier.configs.contracts.signals import Signals
from support.steering.signal_maker import URL, signals

NODES, MAX_RUNNING, KV_TOKENS = 5, 16, 16_384
TICK_MS = 1000
_WINDOW = 2000.0


@dataclass
class Replica:
    """One simulated engine, what it was told, and what it tells."""

    name: str
    config: PolicyConfig
    times: StepTimeModel
    rung: int
    rows: int = 0
    users: dict[tuple[int, ...], SimRequest] = field(default_factory=dict)
    begun: set[tuple[int, ...]] = field(default_factory=set)
    free_ms: float = 0.0
    down_until_ms: float = -1.0
    seq: int = 0

    def __post_init__(self) -> None:
        self.verified: dict[int, np.ndarray] = {}
        self.accepted: dict[int, np.ndarray] = {}
        self.per_user: dict[tuple[int, ...], list[float]] = {}
        self.step_ms: dict[int, float] = {}
        self.busy_ms = deque[tuple[float, float, bool]]()
        self._start()

    def _start(self) -> None:
        limits = EngineLimits(
            max_running=MAX_RUNNING,
            kv_tokens=KV_TOKENS,
            chunk_tokens=256,
            nodes=NODES,
            rung=self.rung,
            live_shares=True,
        )
        policy = Policy("steered", self._planned, heeds_promises=True)
        self.engine = SimEngine(policy, times=self.times, true_times=self.times, limits=limits)

    def take(self, part: ReplicaPlan) -> None:
        """Do as the plan says from the next step on."""
        self.rung, self.rows = part.rung, part.rows
        self.engine.rung = part.rung

    def fail(self, now_ms: float, for_ms: float) -> list[SimRequest]:
        """Lose everything, and be away for a while; return the requests that were lost."""
        lost = list(self.users.values())
        self.users, self.begun, self.per_user = {}, set(), {}
        self.down_until_ms = self.free_ms = now_ms + for_ms
        self._start()
        return lost

    def submit(self, request: SimRequest, now_ms: float) -> None:
        self.users[request.key] = request
        self.engine.submit(request, now_ms=now_ms)

    def count(self, tier: int) -> int:
        return sum(request.tier == tier for request in self.users.values())

    def step(self, now_ms: float) -> SimStep:
        step = self.engine.step(now_ms=now_ms)
        for place, key in enumerate(step.keys):
            self.begun.add(key)
            if len(step.rows):
                self._note(key, int(step.rows[place]) - 1, int(step.tokens[place]) - 1)
        self.busy_ms.append((now_ms, step.took_ms, not len(step.rows)))
        if len(step.rows):
            before = self.step_ms.get(self.rung, step.took_ms)
            self.step_ms[self.rung] = 0.9 * before + 0.1 * step.took_ms
        for each in step.ended:
            self.users.pop(each.request.key)
            self.begun.discard(each.request.key)
            self.per_user.pop(each.request.key, None)
        self.free_ms = now_ms + step.took_ms
        return step

    def _note(self, key: tuple[int, ...], drafted: int, accepted: int) -> None:
        tier = self.users[key].tier
        verified, passed = (of.setdefault(tier, np.zeros(NODES)) for of in (self.verified, self.accepted))
        verified[: min(drafted, accepted + 1)] += 1
        passed[:accepted] += 1
        if verified.max() > _WINDOW:
            verified /= 2
            passed /= 2
        seen = self.per_user.setdefault(key, [0.0, 0.0])
        seen[0], seen[1] = seen[0] + 1 + accepted, seen[1] + 1

    def tell(self, now_ms: float) -> Signals:
        self.seq += 1
        running: dict[int, int] = {}
        queued: dict[int, int] = {}
        for key, request in self.users.items():
            of = running if key in self.begun else queued
            of[request.tier] = of.get(request.tier, 0) + 1
        accept = {}
        for tier, verified in self.verified.items():
            reached = verified > 0
            accept[tier] = [float(chance) for chance in self.accepted[tier][reached] / verified[reached]]
        load = {"dp_rank": 0, "running": running, "queued": queued, "kv_used_frac": 0.0, "context_tokens_p50": 100}
        return signals(
            self.name,
            seq=self.seq,
            at_ms=round(now_ms),
            rung=self.rung,
            rows=self.rows,
            max_running=MAX_RUNNING,
            kv_tokens=KV_TOKENS,
            ranks=[load],
            step_ms=dict(self.step_ms),
            prefill_frac=self._prefill_frac(now_ms),
            accept_by_position=accept,
            accepted_tokens=self._spreads(),
        )

    def _prefill_frac(self, now_ms: float) -> float:
        """The part of the last ten seconds' busy time that went into prefill."""
        while self.busy_ms and self.busy_ms[0][0] < now_ms - 10_000.0:
            self.busy_ms.popleft()
        busy = sum(took for _, took, _ in self.busy_ms)
        return sum(took for _, took, is_prefill in self.busy_ms if is_prefill) / busy if busy else 0.0

    def _spreads(self) -> dict[int, dict[str, float]]:
        by_tier: dict[int, list[float]] = {}
        for key, (tokens, steps) in self.per_user.items():
            if steps >= 8:
                by_tier.setdefault(self.users[key].tier, []).append(tokens / steps)
        return {
            tier: dict(zip(("p5", "p50"), np.percentile(of, [5, 50]).tolist(), strict=True))
            for tier, of in by_tier.items()
        }

    def _planned(self, view: StepView, times: StepTimeModel, rung: int) -> np.ndarray:
        """The ranks' planner under the plan: its rung bounds nodes, its rows the step, its tiers give weights."""
        tiers = [self.config.tiers[request.tier] for request in self.engine.running]
        paced = weights(
            tier_weight=np.array([tier.weight for tier in tiers]),
            promise_tok_s=view.promise_tok_s,
            since_first_s=view.since_first_s,
            delivered_tokens=view.delivered_tokens,
            rules=PaceRules(),
        )
        most_rows = np.minimum(view.most_rows, 1 + self.config.drafted[rung])
        lagged, live = (Offers(of, most_rows, paced) for of in (view.lagged, view.live))
        total = best_total(lagged, times, rung=rung, context_tokens=view.context_tokens, row_budget=self.rows or None)
        rows: np.ndarray = share_out(live, total)
        return rows


@dataclass(frozen=True)
class Arrival:
    """A request, and when it comes."""

    at_ms: float
    request: SimRequest


@dataclass
class Run:
    """What came of a run."""

    ended: list[Ended] = field(default_factory=list)
    tokens: int = 0
    above_caps: int = 0
    left: int = 0
    plans: list[Plan] = field(default_factory=list)

    def attainment(self, tier: int, offered: int) -> float:
        """Promises kept of all `offered`."""
        kept = [e for e in self.ended if e.request.tier == tier and e.speed_tok_s >= e.request.promise_tok_s]
        return len(kept) / offered


def run_cluster(
    config: PolicyConfig,
    times: StepTimeModel,
    arrivals: Sequence[Arrival],
    *,
    replicas: int,
    until_ms: float,
    failures: Sequence[tuple[float, int, float]] = (),
    fixed_rung: int | None = None,
) -> Run:
    """Serve `arrivals`. With `fixed_rung` nothing steers, and all who come are admitted where fewest users are.

    failures: (when, replica, how long it is away); its requests are asked again.
    """
    highest = config.highest_rung if fixed_rung is None else fixed_rung
    all_of = [Replica(f"replica-{place}", config, times, highest) for place in range(replicas)]
    found, waiting, state = Run(), deque[SimRequest](), PolicyState(epoch=2)
    coming, harms = deque(sorted(arrivals, key=lambda each: each.at_ms)), deque(sorted(failures))
    clock = [(0.0, place) for place in range(replicas)]
    next_tick_ms = 0.0
    while clock and (now_ms := clock[0][0]) < until_ms:
        _, place = heapq.heappop(clock)
        while harms and harms[0][0] <= now_ms:
            at_ms, which, for_ms = harms.popleft()
            waiting.extendleft(all_of[which].fail(at_ms, for_ms))
        if fixed_rung is None and now_ms >= next_tick_ms:
            state = _tick(all_of, config, times, state, found, now_ms)
            next_tick_ms = now_ms + TICK_MS
        while coming and coming[0].at_ms <= now_ms:
            waiting.append(coming.popleft().request)
        _admit(all_of, waiting, found, config, now_ms)
        replica = all_of[place]
        if now_ms < replica.free_ms or replica.engine.idle:
            heapq.heappush(clock, (max(replica.free_ms, now_ms + 20.0), place))
            continue
        step = replica.step(now_ms)
        found.tokens += int(step.tokens.sum())
        found.ended += step.ended
        heapq.heappush(clock, (replica.free_ms, place))
    found.left = len(waiting) + sum(len(replica.users) for replica in all_of)
    return found


def _tick(
    all_of: Sequence[Replica], config: PolicyConfig, times: StepTimeModel, state: PolicyState, run: Run, now_ms: float
) -> PolicyState:
    received: Mapping[str, Received] = {
        replica.name: Received(signals=replica.tell(now_ms), age_ms=0, url=URL)
        if now_ms >= replica.down_until_ms
        else Received(signals=None, age_ms=0, url=URL, asked="off")
        for replica in all_of
    }
    now = math.floor(now_ms) + 100_000
    outcome = decide(received, config, dict.fromkeys(received, times), state, now_ms=now, at_ms=math.floor(now_ms))
    run.plans.append(outcome.plan)
    parts = {part.replica_id: part for part in outcome.plan.replicas}
    for replica in all_of:
        if replica.name in parts:
            replica.take(parts[replica.name])
    return outcome.state


def _admit(
    all_of: Sequence[Replica], waiting: "deque[SimRequest]", run: Run, config: PolicyConfig, now_ms: float
) -> None:
    """Send each request that waits where there is room for it, in the order in which they came."""
    plan = run.plans[-1] if run.plans else None
    room = {}
    for replica in all_of:
        if now_ms < replica.down_until_ms:
            continue
        part = None if plan is None else next((p for p in plan.replicas if p.replica_id == replica.name), None)
        for tier in config.tiers:
            if plan is not None and (part is None or part.state != "serving"):
                continue
            cap = None if part is None else part.tiers[tier].cap_users
            free = MAX_RUNNING - len(replica.users)
            room[replica.name, tier] = min(free, (MAX_RUNNING if cap is None else cap) - replica.count(tier))
    for _ in range(len(waiting)):
        request = waiting.popleft()
        open_to = [replica for replica in all_of if room.get((replica.name, request.tier), 0) > 0]
        if not open_to:
            waiting.append(request)
            continue
        # Promised users go where fewest are, others where most are, as long as there is room.
        sign = 1 if request.promise_tok_s or plan is None else -1
        chosen = min(open_to, key=lambda replica: (sign * len(replica.users), replica.name))
        chosen.submit(request, now_ms)
        for tier in config.tiers:
            free = MAX_RUNNING - len(chosen.users)
            room[chosen.name, tier] = min(free, room[chosen.name, tier] - (tier == request.tier))
        if plan is not None:
            part = next((p for p in plan.replicas if p.replica_id == chosen.name), None)
            cap = None if part is None else part.tiers[request.tier].cap_users
            run.above_caps += cap is not None and chosen.count(request.tier) > cap
