"""What a simulated replica tells the controller of itself: the same message, from the same windows, as a real one."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sparktier.cluster.arrays import Floats, Ints
from sparktier.cluster.simulator.sim_engine import SimRequest, SimStep
from sparktier.configs.contracts.signals import Signals

# Rounds of a tier after which what was counted of it is halved.
_WINDOW = 2000.0
# How long users that have ended still tell what text is like, as in the engine.
_ENDED_WINDOW_MS, _LEAST_TOKENS = 30_000.0, 8
_PREFILL_WINDOW_MS = 10_000.0
_STEP_GAIN = 0.1


@dataclass
class Teller:
    """Counts what a replica's steps verified and accepted, and what they took."""

    nodes: int
    knows_all: bool = False
    """Count drafts as if they had been verified whole, for a planner that knows what is accepted."""
    _verified: dict[int, Floats] = field(default_factory=dict)
    _accepted: dict[int, Floats] = field(default_factory=dict)
    _per_user: dict[tuple[int, ...], list[float]] = field(default_factory=dict)
    _ended: deque[tuple[float, int, float]] = field(default_factory=deque)
    _step_ms: dict[int, float] = field(default_factory=dict)
    _busy: deque[tuple[float, float, bool]] = field(default_factory=deque)
    _seq: int = 0

    def note(self, now_ms: float, step: SimStep, rung: int, users: Mapping[tuple[int, ...], SimRequest]) -> None:
        """Learn from a step that began at `now_ms`, with the requests it had."""
        self._busy.append((now_ms, step.took_ms, not len(step.rows)))
        if not len(step.rows):
            return
        before = self._step_ms.get(rung, step.took_ms)
        self._step_ms[rung] = before + _STEP_GAIN * (step.took_ms - before)
        tiers = np.array([users[key].tier for key in step.keys])
        if self.knows_all:
            self._note_tiers(tiers, np.full(len(tiers), self.nodes), step.whole_tokens - 1)
        else:
            self._note_tiers(tiers, step.rows - 1, step.tokens - 1)
        for key, tokens in zip(step.keys, step.tokens.tolist(), strict=True):
            seen = self._per_user.setdefault(key, [0.0, 0.0])
            seen[0], seen[1] = seen[0] + tokens, seen[1] + 1

    def ended(self, now_ms: float, key: tuple[int, ...], tier: int) -> None:
        """A user of `tier` has its answer."""
        tokens, rounds = self._per_user.pop(key, (0.0, 0.0))
        if tokens >= _LEAST_TOKENS:
            self._ended.append((now_ms, tier, tokens / rounds))

    def _note_tiers(self, tiers: Ints, drafted: Ints, accepted: Ints) -> None:
        # A node was judged if all before it were accepted.
        judged, gone_on = self._deeper(tiers, np.minimum(drafted, accepted + 1)), self._deeper(tiers, accepted)
        for tier in set(tiers.tolist()):
            verified, passed = (of.setdefault(tier, np.zeros(self.nodes)) for of in (self._verified, self._accepted))
            verified += judged[tier]
            passed += gone_on[tier]
            if verified.max() > _WINDOW:
                verified /= 2
                passed /= 2

    def _deeper(self, tiers: Ints, depths: Ints) -> Ints:
        """[tiers, nodes] how many of a tier's requests have a depth of more than so many nodes."""
        counts = np.bincount(tiers * (self.nodes + 1) + depths, minlength=(tiers.max() + 1) * (self.nodes + 1))
        deeper: Ints = counts.reshape(-1, self.nodes + 1)[:, :0:-1].cumsum(axis=1)[:, ::-1]
        return deeper

    def tell(
        self,
        name: str,
        *,
        now_ms: float,
        rung: int,
        rows: int,
        users: Mapping[tuple[int, ...], SimRequest],
        begun: set[tuple[int, ...]],
        max_running: int,
        kv_tokens: int,
    ) -> Signals:
        """Return the signals of this moment."""
        self._seq += 1
        running: dict[int, int] = {}
        queued: dict[int, int] = {}
        for key, request in users.items():
            of = running if key in begun else queued
            of[request.tier] = of.get(request.tier, 0) + 1
        contexts = [users[key].prompt_tokens + users[key].answer.tokens // 2 for key in begun if key in users]
        used = sum(users[key].kv_tokens for key in begun if key in users)
        load = {
            "dp_rank": 0,
            "running": running,
            "queued": queued,
            "kv_used_frac": min(1.0, used / kv_tokens),
            "context_tokens_p50": int(np.median(contexts)) if contexts else 0,
        }
        return Signals.model_validate(
            {
                "replica_id": name,
                "epoch": 1,
                "seq": self._seq,
                "at_ms": round(now_ms),
                "plan_version": 0,
                "rung": rung,
                "rows": rows,
                "shares": {},
                "max_running": max_running,
                "kv_tokens": kv_tokens,
                "ranks": [load],
                "step_ms": dict(self._step_ms),
                "prefill_frac": self._prefill_frac(now_ms),
                "accept_by_position": self._accept(),
                "accepted_tokens": self._spreads(now_ms, users),
                "tok_s_per_user": {},
                "canary": {"state": "off", "scored_tokens": 0, "alarms": 0},
            }
        )

    def _accept(self) -> dict[int, list[float]]:
        found = {}
        for tier, verified in self._verified.items():
            reached = verified > 0
            found[tier] = [float(chance) for chance in self._accepted[tier][reached] / verified[reached]]
        return found

    def _prefill_frac(self, now_ms: float) -> float:
        while self._busy and self._busy[0][0] < now_ms - _PREFILL_WINDOW_MS:
            self._busy.popleft()
        busy = sum(took for _, took, _ in self._busy)
        return sum(took for _, took, is_prefill in self._busy if is_prefill) / busy if busy else 0.0

    def _spreads(self, now_ms: float, users: Mapping[tuple[int, ...], SimRequest]) -> dict[int, dict[str, float]]:
        while self._ended and self._ended[0][0] < now_ms - _ENDED_WINDOW_MS:
            self._ended.popleft()
        by_tier: dict[int, list[float]] = {}
        for _, tier, length in self._ended:
            by_tier.setdefault(tier, []).append(length)
        for key, (tokens, rounds) in self._per_user.items():
            if key in users and tokens >= _LEAST_TOKENS:
                by_tier.setdefault(users[key].tier, []).append(tokens / rounds)
        return {
            tier: dict(zip(("p5", "p50"), np.percentile(of, [5, 50]).tolist(), strict=True))
            for tier, of in by_tier.items()
        }
