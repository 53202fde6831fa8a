"""The loop: arrivals, steps, ticks, messages and failures in the order of their times, from one seed.

Replicas hold the caps and say whether they have room; gateways hold the queues and route as real ones do. Nothing
here reads a clock.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from sparktier.cluster.admission.routing import Candidate, PrefixMemory, choose
from sparktier.cluster.depth_policy import decide
from sparktier.cluster.policy.policy_types import PolicyState, Received
from sparktier.cluster.simulator.fleet.fleet_policies import FleetPolicy
from sparktier.cluster.simulator.fleet.fleet_types import Failure, FleetRun, FleetSpec, FleetTexts, Offered, Result
from sparktier.cluster.simulator.fleet.queues import Queues
from sparktier.cluster.simulator.fleet.sim_replica import SimReplica
from sparktier.cluster.simulator.sim_engine import SimStep
from sparktier.configs.contracts.plan import ReplicaPlan
from sparktier.configs.contracts.signals import Signals

_URL = "http://10.0.0.1:30000"
# The policy's monotonic clock begins there: hold times count from a replica's first signals.
_CLOCK_MS = 100_000


class Fleet:
    """A simulated cluster under `policy`. `pools`: by replica, the static plan that a pooled policy has it hold to.

    `answers` of requests are drawn by (seed, number), so that all policies give the same ones.
    """

    def __init__(
        self,
        spec: FleetSpec,
        policy: FleetPolicy,
        offered: Sequence[Offered],
        texts: FleetTexts,
        *,
        seed: int,
        pools: Sequence[ReplicaPlan] = (),
    ) -> None:
        self.spec, self._policy, self._texts, self._seed = spec, policy, texts, seed
        self._pools = pools
        self.replicas = [SimReplica(place, spec.replica, policy, spec.config) for place in range(spec.replicas)]
        for replica, plan in zip(self.replicas, pools, strict=False):
            replica.take(plan)
        self.results = [Result(number, each) for number, each in enumerate(offered)]
        self.queues = Queues(spec.config.tiers, spec.gateways)
        self.run_of = FleetRun(self.results)
        self._tokens: list[tuple[float, int]] = []
        self._rungs: Counter[int] = Counter()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._losses = np.random.default_rng([seed, 1])
        self._memory = PrefixMemory()
        self._heard: dict[str, tuple[Signals, float]] = {}
        self._state = PolicyState(epoch=1)
        self.now_ms = 0.0

    def run(self, until_ms: float, on_event: Callable[["Fleet"], None] = lambda fleet: None) -> FleetRun:
        """Simulate until `until_ms` and return what came of it; `on_event` is called after each event."""
        if self.results:
            self._at(self.results[0].offered.at_ms, partial(self._arrive, 0))
        for failure in self.spec.trouble.failures:
            self._at(failure.at_ms, partial(self._fail, failure))
        if self._policy.steered:
            self._at(0.0, self._tick)
        while self._events and self._events[0][0] <= until_ms:
            self.now_ms, _, happen = heapq.heappop(self._events)
            happen()
            on_event(self)
        for result in self.results:
            result.fate = result.fate or "unfinished"
        self.run_of.tokens, self.run_of.rungs = self._tokens, dict(self._rungs)
        return self.run_of

    def _at(self, at_ms: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_ms, next(self._order), happen))

    def _arrive(self, number: int) -> None:
        if number + 1 < len(self.results):
            self._at(self.results[number + 1].offered.at_ms, partial(self._arrive, number + 1))
        self._place_or_queue(number)

    def _place_or_queue(self, number: int) -> None:
        """Send a request where there is room for it, unless others wait for the same; else queue it."""
        offered = self.results[number].offered
        if not self.queues.waits(offered.tier) and self._placed(number):
            return
        ttft_ms = self.spec.config.tiers[offered.tier].ttft_ms
        self.queues.put(number, offered.tier)
        if ttft_ms is not None:
            self._at(max(self.now_ms, offered.at_ms + ttft_ms), partial(self._too_late, number))

    def _too_late(self, number: int) -> None:
        if self.queues.remove(number, self.results[number].offered.tier):
            self.results[number].fate = "refused"

    def _placed(self, number: int) -> bool:
        offered = self.results[number].offered
        # The longest beginning first, as the gateway's memory wants them.
        beginnings = tuple(reversed(offered.prefix))
        candidates = [
            Candidate(replica.number, max(0, replica.free(offered.tier)), len(replica.users))
            for replica in self.replicas
        ]
        found = choose(candidates, users=1, holder=self._memory.holder(beginnings))
        if found is None:
            return False
        chosen = self.replicas[found.number]
        self._memory.sent(beginnings, chosen.number)
        answer = self._texts.answer(np.random.default_rng([self._seed, 0, number]), offered.output_tokens)
        chosen.submit(number, offered, answer, self.now_ms)
        self.results[number].replica = chosen.number
        self._wake(chosen)
        return True

    def _wake(self, replica: SimReplica) -> None:
        """Start a step where a replica has something to do and is not in one."""
        if not replica.up or replica.busy or replica.engine.idle:
            return
        rung = replica.engine.rung
        step = replica.step(self.now_ms)
        replica.busy = True
        if len(step.rows):
            self._rungs[rung] += 1
            self.run_of.steps += 1
            self.run_of.rows += int(step.rows.sum())
            self.run_of.row_requests += len(step.rows)
        self._at(self.now_ms + step.took_ms, partial(self._stepped, replica, replica.generation, step))

    def _stepped(self, replica: SimReplica, generation: int, step: SimStep) -> None:
        if generation != replica.generation:
            return
        replica.busy = False
        self._tokens.append((self.now_ms, int(step.tokens.sum())))
        for ended in step.ended:
            result = self.results[ended.request.key[0]]
            result.fate, result.first_ms, result.last_ms = "served", ended.first_ms, ended.last_ms
            replica.leave(ended.request.key, self.now_ms)
        if step.ended:
            self._drain()
        self._wake(replica)

    def _drain(self) -> None:
        """Send those on who wait, as far as there is room: the highest promise first, in the order of arrival."""
        for tier in self.queues.tiers:
            while (number := self.queues.first(tier)) is not None and self._placed(number):
                self.queues.remove(number, tier)

    def _fail(self, failure: Failure) -> None:
        replica = self.replicas[failure.replica]
        if not replica.up:
            return
        cut, unborn = replica.fail()
        self._heard.pop(replica.name, None)
        for number in cut:
            self.results[number].fate = "failed"
        # No client has seen a token of the others: they go on elsewhere.
        for number in unborn:
            self._place_or_queue(number)
        self._at(self.now_ms + failure.for_ms + self.spec.replica.starts_ms, partial(self._start, replica))

    def _start(self, replica: SimReplica) -> None:
        replica.up = True
        if self._pools:
            replica.take(self._pools[replica.number])
        self._drain()

    def _tick(self) -> None:
        """Replicas tell; what has come after half a tick at most is decided by."""
        trouble = self.spec.trouble
        for replica in self.replicas:
            if replica.up and self._losses.random() >= trouble.signal_loss_frac:
                heard = partial(self._hear, replica.name, replica.tell(self.now_ms))
                self._at(self.now_ms + trouble.signal_delay_ms, heard)
        self._at(self.now_ms + min(trouble.signal_delay_ms, self.spec.tick_ms / 2), self._decide)
        self._at(self.now_ms + self.spec.tick_ms, self._tick)

    def _hear(self, name: str, signals: Signals) -> None:
        self._heard[name] = (signals, self.now_ms)

    def _decide(self) -> None:
        received: dict[str, Received] = {}
        for replica in self.replicas:
            signals, heard_ms = self._heard.get(replica.name, (None, self.now_ms))
            asked: Literal["serving", "off"] = "serving" if replica.up else "off"
            age_ms = math.ceil(self.now_ms - heard_ms)
            found = signals if replica.up else None
            received[replica.name] = Received(signals=found, age_ms=age_ms, url=_URL, asked=asked)
        models = dict.fromkeys(received, self.spec.replica.times)
        at_ms = math.floor(self.now_ms)
        outcome = decide(received, self.spec.config, models, self._state, now_ms=at_ms + _CLOCK_MS, at_ms=at_ms)
        self._state = outcome.state
        self.run_of.decisions += len(outcome.decisions)
        by_name: Mapping[str, ReplicaPlan] = {part.replica_id: part for part in outcome.plan.replicas}
        for replica in self.replicas:
            part = by_name.get(replica.name)
            if part is not None and replica.up and self._losses.random() >= self.spec.trouble.plan_loss_frac:
                taken = partial(self._take, replica, replica.generation, part)
                self._at(self.now_ms + self.spec.trouble.plan_delay_ms, taken)

    def _take(self, replica: SimReplica, generation: int, part: ReplicaPlan) -> None:
        if generation == replica.generation and replica.plan != part:
            replica.take(part)
            self._drain()
