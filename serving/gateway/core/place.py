"""One request's place at a replica, from its wait for one to its last byte."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from sparktier.cluster.admission.queue import Waiting
from sparktier.configs.errors import ReplicaLost, ReplicaUnreachable
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.routing import Replica


class Places(Protocol):
    """What gives places; see `Admission`."""

    @property
    def now_s(self) -> float:
        """The time by its clock."""
        ...

    def watch(self) -> None:
        """Look again soon while a request waits for room or for its first token."""
        ...

    def elsewhere(self, request: Waiting) -> bool:
        """Whether another replica serves than those at which `request` has failed."""
        ...

    def put_back(self, request: Waiting) -> None:
        """Have a request wait again that got no token where it was sent."""
        ...

    def first_token(self, request: Waiting) -> None:
        """Note that a request has its first token."""
        ...

    def leave(self, request: Waiting) -> None:
        """Forget a request, whether it waits or has ended."""
        ...


class Place:
    """One request's place at a replica: waited for, lost, found elsewhere, and given back at `close`."""

    def __init__(self, places: Places, request: Waiting, prompt_tokens: int) -> None:
        self._places, self._request, self._prompt_tokens = places, request, prompt_tokens
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
            self.waited_s = self._places.now_s - self._request.arrived_s
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
            self._last_token_s = self._places.now_s
            at.progress.sent(self._prompt_tokens, self._last_token_s)
            self._places.watch()
        try:
            async with asyncio.timeout(None) as self._limit:
                yield
        except TimeoutError as error:
            raise ReplicaLost("no token has come, of this stream or of any other, for longer than is usual") from error
        finally:
            self._limit = None
        now_s = self._places.now_s
        if not streams:
            at.progress.succeeded(now_s)
            return
        self._had_first = True
        at.progress.first(self._prompt_tokens, took_s=now_s - self._last_token_s, now_s=now_s)
        self._places.first_token(self._request)
        self._last_token_s = now_s

    def tokens(self) -> None:
        """Note that its stream has more tokens."""
        now_s = self._places.now_s
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
        at, now_s = self._leave_replica(), self._places.now_s
        at.room.full(self._request.tier, now_s)
        at.progress.succeeded(now_s)
        self.go_on()

    def may_go_on(self, error: ReplicaLost) -> bool:
        """Note that its replica was lost before its first token, and return whether it may go on elsewhere.

        What was sent may have been begun, and may be why the replica was lost: that is tried once more only.
        """
        at = self._leave_replica()
        at.progress.failed(self._places.now_s)
        self._request.avoid.add(at.number)
        was_sent = not isinstance(error, ReplicaUnreachable)
        if not self._places.elsewhere(self._request) or (was_sent and self._moved):
            return False
        self._moved = self._moved or was_sent
        return True

    def lost(self) -> None:
        """Note that its replica was lost after its first token, which ends it."""
        if self._at is not None:
            self._at.progress.failed(self._places.now_s)

    def close(self) -> None:
        """Give everything back."""
        if self._at is not None:
            self._leave_replica()
        self._places.leave(self._request)

    def go_on(self) -> None:
        """Wait for a place at another replica, before all others."""
        self._arrived = asyncio.get_running_loop().create_future()
        self._places.put_back(self._request)

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
