"""One simulated replica: its engine, the plan in force, the users it has, and the prefixes that it still knows."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np

from sparktier.cluster.admission.box import Box
from sparktier.cluster.arrays import Ints
from sparktier.cluster.policy.policy_types import PolicyConfig
from sparktier.cluster.simulator.answers import Answer
from sparktier.cluster.simulator.fleet.fleet_policies import FleetPolicy, StepTerms
from sparktier.cluster.simulator.fleet.fleet_types import Offered, ReplicaSpec
from sparktier.cluster.simulator.fleet.telling import Teller
from sparktier.cluster.simulator.policies import Policy, StepView
from sparktier.cluster.simulator.sim_engine import EngineLimits, SimEngine, SimRequest, SimStep
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.traffic.requests import PREFIX_BLOCK_TOKENS
from sparktier.configs.contracts.plan import ReplicaPlan
from sparktier.configs.contracts.signals import Signals

_KEPT_BLOCKS_FRAC = 0.5


class SimReplica:
    """A replica by number. The caps of the plan in force bound its users; before a controller's first it takes none.

    `generation` rises with each failure, so that what was on its way to the replica before is known to be old.
    """

    def __init__(self, number: int, spec: ReplicaSpec, policy: FleetPolicy, config: PolicyConfig) -> None:
        self.number, self.name = number, f"replica-{number:04d}"
        self.spec, self._policy, self._config = spec, policy, config
        self.plan: ReplicaPlan | None = None
        self.generation = 0
        self.up = True
        self.busy = False
        rules = config.tiers
        self._weights, self._caps = np.zeros(max(rules) + 1), np.zeros(max(rules) + 1, dtype=np.int64)
        for tier, rule in rules.items():
            self._weights[tier] = rule.weight
            self._caps[tier] = spec.nodes if rule.cap_tokens is None else rule.cap_tokens
        self._start()

    def _start(self) -> None:
        spec = self.spec
        limits = EngineLimits(
            max_running=spec.max_running,
            kv_tokens=spec.kv_tokens,
            chunk_tokens=spec.chunk_tokens,
            nodes=spec.nodes,
            rung=self._policy.rung,
            live_shares=spec.live_shares or self._policy.knows_all,
        )
        rows = Policy(self._policy.name, self._rows, heeds_promises=True, drafts=self._policy.rung > 0)
        self.engine = SimEngine(rows, times=spec.times, true_times=spec.true_times, limits=limits)
        self.users: dict[tuple[int, ...], SimRequest] = {}
        self.begun: set[tuple[int, ...]] = set()
        self.box = Box(dict.fromkeys(self._config.tiers), self._config.default_tier, open=not self._policy.steered)
        self.teller = Teller(spec.nodes, self._policy.knows_all)
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def take(self, plan: ReplicaPlan) -> None:
        """Do as the plan says from the next step on."""
        self.plan = plan
        self.engine.rung = plan.rung
        caps = {tier: bounds.cap_users for tier, bounds in plan.tiers.items()}
        self.box.put(caps, default_tier=self._config.default_tier, open=plan.state == "serving")

    def free(self, tier: int) -> int:
        """Return how many more users of `tier` are taken now."""
        if not self.up:
            return 0
        free, bounded = self.spec.max_running - len(self.users), self.box.free(tier)
        return free if bounded is None else min(free, bounded)

    def known_blocks(self, prefix: tuple[int, ...]) -> int:
        """Return how many blocks of a prompt, from its beginning, are in the cache."""
        known = 0
        while known < len(prefix) and prefix[known] in self._blocks:
            known += 1
        return known

    def submit(self, number: int, offered: Offered, answer: Answer, now_ms: float) -> None:
        """Take a request that will get `answer`."""
        cached = offered.prompt_tokens
        if self.spec.prefills:
            # The last token of a prompt is always computed.
            cached = min(PREFIX_BLOCK_TOKENS * self.known_blocks(offered.prefix), offered.prompt_tokens - 1)
            self._keep(offered.prefix)
        promise_tok_s = self._config.tiers[offered.tier].promise_tok_s or 0.0
        if self._policy.knows_all:
            answer = replace(answer, survival=np.diff(answer.accepted, axis=1).astype(np.float64))
        request = SimRequest((number,), offered.tier, promise_tok_s, offered.prompt_tokens, answer, cached)
        self.users[request.key] = request
        self.box.take(offered.tier, 1)
        self.engine.submit(request, now_ms=now_ms)

    def step(self, now_ms: float) -> SimStep:
        """Run the step that begins now; those who end in it leave at its end, by `leave`."""
        rung = self.engine.rung
        step = self.engine.step(now_ms=now_ms)
        self.begun.update(step.keys)
        if self._policy.steered:
            self.teller.note(now_ms, step, rung, self.users)
        return step

    def leave(self, key: tuple[int, ...], now_ms: float) -> None:
        """A user has its answer."""
        tier = self.users.pop(key).tier
        self.box.release(tier, 1)
        self.begun.discard(key)
        self.teller.ended(now_ms, key, tier)

    def fail(self) -> tuple[list[int], list[int]]:
        """Lose everything; return the numbers of requests that had tokens, and of those that had none yet."""
        cut = [key[0] for key in self.users if key in self.begun]
        unborn = [key[0] for key in self.users if key not in self.begun]
        self.generation += 1
        self.up = self.busy = False
        self.plan = None
        self._start()
        return cut, unborn

    def tell(self, now_ms: float) -> Signals:
        """Return its signals."""
        return self.teller.tell(
            self.name,
            now_ms=now_ms,
            rung=self.engine.rung,
            rows=self.plan.rows if self.plan else 0,
            users=self.users,
            begun=self.begun,
            max_running=self.spec.max_running,
            kv_tokens=self.spec.kv_tokens,
        )

    def _rows(self, view: StepView, times: StepTimeModel, rung: int) -> Ints:
        """The planner's rows under the plan in force: its rung bounds nodes, its tiers give weights and caps."""
        tiers = self.engine.tiers
        terms = StepTerms(self._weights[tiers], self._caps[tiers], self.plan.rows if self.plan else 0)
        return self._policy.rows(view, times, rung, terms)

    def _keep(self, prefix: tuple[int, ...]) -> None:
        for block in prefix:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        most = int(_KEPT_BLOCKS_FRAC * self.spec.kv_tokens / PREFIX_BLOCK_TOKENS)
        while len(self._blocks) > most:
            self._blocks.popitem(last=False)
