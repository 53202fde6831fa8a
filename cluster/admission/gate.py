"""Lets requests through to replicas, or has them wait, downgrades or refuses them: what a gateway decides. Pure.

Every call has the time `now_s`; what is decided comes back, and the caller tells each request.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sparktier.cluster.admission.queue import TierQueue, Waiting
from sparktier.cluster.admission.routing import Candidate, PrefixMemory, choose

_SMOOTHING = 0.1


@dataclass(frozen=True)
class Terms:
    """What a tier promises a request that waits, and what becomes of one that finds no room."""

    ttft_s: float | None = None
    on_full: Literal["queue", "downgrade", "reject"] = "queue"
    downgrade_to: int | None = None
    yields: bool = False


@dataclass(frozen=True)
class Granted:
    """The request goes to replica `number`."""

    request: Waiting
    number: int


@dataclass(frozen=True)
class Full:
    """The request is refused; `wait_s` is how long it would have waited, None where that is not known."""

    request: Waiting
    wait_s: float | None


Decision = Granted | Full
Fleet = Callable[[int], Sequence[tuple[Candidate, int | None]]]
"""The replicas that serve, as a tier finds them, each with that tier's cap there (None: no bound)."""


class Gate:
    """`terms` returns those of each tier as they are now; `fleet` what serves; `sent` is told of each grant."""

    def __init__(
        self, terms: Callable[[], Mapping[int, Terms]], fleet: Fleet, sent: Callable[[Waiting, int], None]
    ) -> None:
        self._terms, self._fleet, self._sent = terms, fleet, sent
        self._queues: dict[int, TierQueue] = defaultdict(TierQueue)
        self._memory = PrefixMemory()
        self._held_s: dict[int, float] = {}
        self._first_token_s: dict[int, float] = {}

    def arrive(self, request: Waiting, now_s: float) -> list[Decision]:
        """Take a new request in. One of which nothing comes back waits."""
        self._wait(request, request.asked)
        decided = self.look(now_s)
        visited = {request.tier}
        while not any(each.request is request for each in decided):
            terms = self._of(request.tier)
            wait_s = self.predicted_wait_s(request)
            if terms.on_full == "downgrade" and terms.downgrade_to not in (None, *visited):
                assert terms.downgrade_to is not None
                self._queues[request.tier].leave(request)
                visited.add(terms.downgrade_to)
                self._wait(request, terms.downgrade_to)
                decided += self.look(now_s)
                continue
            left_s = request.deadline_s - now_s
            if terms.on_full != "queue" or left_s <= 0 or (wait_s is not None and wait_s > left_s):
                self._queues[request.tier].leave(request)
                decided.append(Full(request, wait_s))
            break
        return decided

    def put_back(self, request: Waiting, now_s: float) -> list[Decision]:
        """Have a request that was let through wait again, before all others: it got no token where it was sent."""
        request.granted_s = None
        self._queues[request.tier].put_back(request)
        return self.look(now_s)

    def look(self, now_s: float) -> list[Decision]:
        """Let through what there is room for, and refuse what is late; call it whenever room may have come."""
        decided: list[Decision] = []
        # Those who yield take what others leave.
        for tier in sorted(self._queues, key=lambda tier: (self._of(tier).yields, tier)):
            queue = self._queues[tier]
            for late in queue.late(now_s):
                wait_s = self.predicted_wait_s(late)
                queue.leave(late)
                decided.append(Full(late, wait_s))
            while (request := queue.first()) is not None and (number := self._place(request)) is not None:
                queue.take(request)
                request.granted_s = now_s
                self._memory.sent(request.prefixes, number)
                self._sent(request, number)
                decided.append(Granted(request, number))
        return decided

    def leave(self, request: Waiting) -> None:
        """Forget a request that waits no more, as its client is gone."""
        self._queues[request.tier].leave(request)

    def ended(self, request: Waiting, now_s: float) -> None:
        """Learn how long a request that was let through has held its place."""
        if request.granted_s is not None:
            _follow(self._held_s, request.tier, now_s - request.granted_s)

    def first_token(self, request: Waiting, now_s: float) -> None:
        """Learn how long the first token takes once a request is let through."""
        if request.granted_s is not None:
            _follow(self._first_token_s, request.tier, now_s - request.granted_s)

    def predicted_wait_s(self, request: Waiting) -> float | None:
        """Return how long a request that has to wait will: as many users as wait have to end before it.

        None where no cap is known, or no request of the tier has ended yet.
        """
        held_s = self._held_s.get(request.tier)
        caps = [cap for _, cap in self._fleet(request.tier) if cap is not None]
        if held_s is None or not sum(caps):
            return None
        queue = self._queues[request.tier]
        return held_s * max(request.users, queue.users) / sum(caps)

    @property
    def next_deadline_s(self) -> float:
        """When the first request that waits is late."""
        return min((queue.next_deadline_s for queue in self._queues.values()), default=float("inf"))

    @property
    def waiting(self) -> dict[int, int]:
        """Users that wait, by tier."""
        return {tier: queue.users for tier, queue in self._queues.items() if queue.users}

    def _wait(self, request: Waiting, tier: int) -> None:
        """Queue a request. What its first token takes once it is let through is no time for waiting."""
        request.tier = tier
        ttft_s = self._of(tier).ttft_s
        if ttft_s is not None:
            request.deadline_s = request.arrived_s + max(0.0, ttft_s - self._first_token_s.get(tier, 0.0))
        else:
            request.deadline_s = float("inf")
        self._queues[tier].push(request)

    def _place(self, request: Waiting) -> int | None:
        candidates = [candidate for candidate, _ in self._fleet(request.tier)]
        holder = self._memory.holder(request.prefixes)
        found = choose(candidates, users=request.users, avoid=request.avoid, holder=holder)
        return None if found is None else found.number

    def _of(self, tier: int) -> Terms:
        # A tier that a reload has taken away: its requests wait as others do.
        return self._terms().get(tier, Terms())


def _follow(means: dict[int, float], tier: int, value: float) -> None:
    means[tier] = value if tier not in means else means[tier] + _SMOOTHING * (value - means[tier])
