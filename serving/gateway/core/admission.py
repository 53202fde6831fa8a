"""The gate in an event loop: requests wait for a place at a replica here, and give it back however they end."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence

from sparktier.cluster.admission.gate import Decision, Full, Gate
from sparktier.cluster.admission.queue import Waiting
from sparktier.cluster.admission.routing import Candidate, prefixes_of
from sparktier.configs.errors import ReplicaLost, ReplicaUnreachable
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.gateway.tenants.allowance import Load
from sparktier.serving.gateway.tier_resolution import TierTable

RETRY_AFTER_S = 5
"""Where no wait can be predicted."""
# How often what waits is looked at without a message of room: replicas come and go.
_LOOK_S = 0.25


def not_ready() -> Refused:
    """Return the refusal of a request for which there is no replica at all."""
    message = "No replica is ready. Try again in a few seconds."
    return Refused(message, status=503, code="not_ready", retry_after_s=RETRY_AFTER_S)


class Admission:
    """Places at the replicas of `table` for requests of the tiers that `tiers` returns; `clock` is monotonic."""

    def __init__(
        self, table: ReplicaTable, tiers: Callable[[], TierTable], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._table, self._tiers, self._clock = table, tiers, clock
        self._gate = Gate(lambda: tiers().terms, self._fleet, self._sent)
        self._places: dict[Waiting, Place] = {}
        self._timer: asyncio.TimerHandle | None = None

    def arrive(self, tier: int, tenant: str, load: Load, *, secret: str) -> "Place":
        """Return the place of a new request, which may still have to wait for its replica.

        Raises:
            Refused: there is no room, and its tier does not wait for any, or not for so long.
        """
        now_s = self._clock()
        prefixes = prefixes_of(secret, load.beginning)
        request = Waiting(tier, tenant, load.users, load.tokens, now_s, prefixes=prefixes)
        place = self._places[request] = Place(self, request, load.prompt_tokens)
        try:
            self._require_possible(request)
            self._apply(self._gate.arrive(request, now_s))
            if (refusal := place.refusal) is not None:
                raise refusal
        except BaseException:
            place.close()
            raise
        if not place.is_granted:
            place.waits(self._gate.predicted_wait_s(request))
        return place

    def look(self) -> None:
        """Let through what there is room for now; call it when a replica has told its room."""
        now_s = self._clock()
        self._apply(self._gate.look(now_s))
        healthy = [replica.number for replica in self._table.serving if replica.progress.healthy(now_s)]
        for place in list(self._places.values()):
            place.leave_if_hung(now_s, healthy)

    def name(self, tier: int) -> str:
        """Return a tier's name."""
        return self._tiers().names.get(tier, str(tier))

    def elsewhere(self, request: Waiting) -> bool:
        """Whether another replica serves than those at which `request` has failed."""
        return any(replica.number not in request.avoid for replica in self._table.serving)

    def put_back(self, request: Waiting) -> None:
        """Have a request wait again that got no token where it was sent."""
        self._apply(self._gate.put_back(request, self._clock()))

    def first_token(self, request: Waiting) -> None:
        """Note that a request has its first token."""
        self._gate.first_token(request, self._clock())

    def leave(self, request: Waiting) -> None:
        """Forget a request, whether it waits or has ended."""
        if self._places.pop(request, None) is not None:
            self._gate.leave(request)
            self._gate.ended(request, self._clock())

    def watch(self) -> None:
        """Look again soon while a request waits for room or for its first token."""
        if self._timer is not None or not any(place.awaits_something for place in self._places.values()):
            return
        now_s = self._clock()
        after_s = min(_LOOK_S, max(0.0, self._gate.next_deadline_s - now_s))
        self._timer = asyncio.get_running_loop().call_later(after_s, self._tick)

    @property
    def now_s(self) -> float:
        """The time by its clock."""
        return self._clock()

    def _require_possible(self, request: Waiting) -> None:
        """Refuse more users than any replica would take even without any, rather than have them wait in vain."""
        fleet = self._fleet(request.tier)
        if not fleet:
            raise not_ready()
        caps = [cap for _, cap in fleet if cap is not None]
        waits = self._tiers().terms[request.tier].on_full == "queue"
        if waits and len(caps) == len(fleet) and 0 < max(caps) < request.users:
            message = (
                f"n times the number of prompts must be at most {max(caps)} now for the tier {self.name(request.tier)} "
                f"(found {request.users}). Ask less."
            )
            raise Refused(message, param="n", code="too_many_users")

    def _fleet(self, tier: int) -> Sequence[tuple[Candidate, int | None]]:
        now_s = self._clock()
        return [
            (
                Candidate(
                    replica.number, replica.room.free(tier, now_s), replica.users, replica.progress.healthy(now_s)
                ),
                replica.room.caps.get(tier),
            )
            for replica in self._table.serving
        ]

    def _sent(self, request: Waiting, number: int) -> None:
        replica = next(replica for replica in self._table.replicas if replica.number == number)
        self._places[request].granted(replica)

    def _apply(self, decided: Sequence[Decision]) -> None:
        for each in decided:
            if isinstance(each, Full):
                self._places[each.request].refuse(self._full(each))
        self.watch()

    def _full(self, full: Full) -> Refused:
        if not self._table.serving:
            return not_ready()
        retry_s = RETRY_AFTER_S if full.wait_s is None else max(1, math.ceil(full.wait_s))
        name = self.name(full.request.tier)
        message = f"The tier {name} has no room for this request now. Send it again in {retry_s} s."
        return Refused(message, status=429, code="no_room", retry_after_s=retry_s, tier=name)

    def _tick(self) -> None:
        self._timer = None
        self.look()


class Place:
    """One request's place at a replica: waited for, lost, found elsewhere, and given back at `close`."""

    def __init__(self, admission: Admission, request: Waiting, prompt_tokens: int) -> None:
        self._admission, self._request, self._prompt_tokens = admission, request, prompt_tokens
        self._arrived = asyncio.get_running_loop().create_future()
        self._limit: asyncio.Timeout | None = None
        self._at: Replica | None = None
        self._streams = self._had_first = self._moved = self._waits = False
        self._last_token_s = 0.0
        self._counted_tier = -1
        self.last: Replica | None = None
        self.refusal: Refused | None = None
        self.predicted_wait_s: float | None = None
        self.waited_s: float | None = None

    @property
    def tier(self) -> int:
        """The tier that serves it."""
        return self._request.tier

    @property
    def asked_tier(self) -> int | None:
        """The tier that it asked for, where another one serves it."""
        return None if self._request.asked == self._request.tier else self._request.asked

    @property
    def is_granted(self) -> bool:
        """Whether it has a replica."""
        return self._at is not None

    @property
    def awaits_something(self) -> bool:
        """Whether it waits for a replica, or for the first token of its stream."""
        return self._at is None or (self._streams and not self._had_first)

    async def replica(self) -> Replica:
        """Return its replica once there is one. Raises Refused where none came in time."""
        if self._at is None and self.refusal is None:
            await asyncio.shield(self._arrived)
        if self.refusal is not None:
            raise self.refusal
        assert self._at is not None
        return self._at

    def granted(self, replica: Replica) -> None:
        """Take a place at `replica`."""
        self._at = self.last = replica
        self._counted_tier = self._request.tier
        replica.in_flight += 1
        replica.room.sent(self._counted_tier, self._request.users)
        if self._waits:
            self.waited_s = self._admission.now_s - self._request.arrived_s
        self._wake()

    def waits(self, predicted_s: float | None) -> None:
        """Note that it has to wait, and for how long it is expected to."""
        self._waits, self.predicted_wait_s = True, predicted_s

    def refuse(self, refusal: Refused) -> None:
        """Tell it that it gets none."""
        self.refusal = refusal
        self._wake()

    @contextlib.asynccontextmanager
    async def unless_it_hangs(self, *, streams: bool) -> AsyncIterator[None]:
        """Run the body, which ends with the first token. Raises ReplicaLost where the replica hangs meanwhile."""
        at = self._at
        assert at is not None
        self._streams = streams
        if streams:
            self._last_token_s = self._admission.now_s
            at.progress.sent(self._prompt_tokens, self._last_token_s)
            self._admission.watch()
        try:
            async with asyncio.timeout(None) as self._limit:
                yield
        except TimeoutError as error:
            raise ReplicaLost("no token has come, of this stream or of any other, for longer than is usual") from error
        finally:
            self._limit = None
        now_s = self._admission.now_s
        if not streams:
            at.progress.succeeded(now_s)
            return
        self._had_first = True
        at.progress.first(self._prompt_tokens, took_s=now_s - self._last_token_s, now_s=now_s)
        self._admission.first_token(self._request)
        self._last_token_s = now_s

    def tokens(self) -> None:
        """Note that its stream has more tokens."""
        now_s = self._admission.now_s
        if self._at is not None:
            self._at.progress.token(since_s=now_s - self._last_token_s, now_s=now_s)
        self._last_token_s = now_s

    def leave_if_hung(self, now_s: float, healthy: Sequence[int]) -> None:
        """End the attempt at a replica that hangs, while it has no token and a healthy replica serves."""
        limit, at = self._limit, self._at
        if limit is None or at is None or not at.progress.hangs(now_s):
            return
        if not self._moved and any(number not in self._request.avoid for number in healthy):
            limit.reschedule(asyncio.get_running_loop().time())

    def no_room(self) -> None:
        """Wait again: its replica had no room for it."""
        at, now_s = self._leave_replica(), self._admission.now_s
        at.room.full(self._request.tier, now_s)
        at.progress.succeeded(now_s)
        self.go_on()

    def may_go_on(self, error: ReplicaLost) -> bool:
        """Note that its replica was lost before its first token, and return whether it may go on elsewhere.

        What was sent may have been begun, and may be why the replica was lost: that is tried once more only.
        """
        at = self._leave_replica()
        at.progress.failed(self._admission.now_s)
        self._request.avoid.add(at.number)
        was_sent = not isinstance(error, ReplicaUnreachable)
        if not self._admission.elsewhere(self._request) or (was_sent and self._moved):
            return False
        self._moved = self._moved or was_sent
        return True

    def lost(self) -> None:
        """Note that its replica was lost after its first token, which ends it."""
        if self._at is not None:
            self._at.progress.failed(self._admission.now_s)

    def close(self) -> None:
        """Give everything back."""
        if self._at is not None:
            self._leave_replica()
        self._admission.leave(self._request)

    def go_on(self) -> None:
        """Wait for a place at another replica, before all others."""
        self._arrived = asyncio.get_running_loop().create_future()
        self._admission.put_back(self._request)

    def _leave_replica(self) -> Replica:
        at = self._at
        assert at is not None
        self._at = None
        at.in_flight -= 1
        at.room.left(self._counted_tier, self._request.users)
        if self._streams:
            at.progress.over(self._prompt_tokens, had_first=self._had_first)
        self._streams = self._had_first = False
        return at

    def _wake(self) -> None:
        if not self._arrived.done():
            self._arrived.set_result(None)
