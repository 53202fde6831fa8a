"""One admitted request at a replica: sent, read, metered, and ended at once where its client is gone."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json, to_json

from sparktier.configs.contracts.ended import REQUEST_ID_HEADER
from sparktier.configs.contracts.room import NO_ROOM, ROOM_HEADER, TIER_HEADER, USERS_HEADER
from sparktier.configs.errors import ReplicaLost
from sparktier.configs.plan_keys import REQUEST_PARAM, TRACE_PARAM
from sparktier.serving.clients.replica import AsyncReplicaClient, OpenAnswer
from sparktier.serving.gateway.core.ask import Ask
from sparktier.serving.gateway.core.events import Message, Restatement, batches
from sparktier.serving.gateway.core.meter import Ended, Meter, Started
from sparktier.serving.gateway.core.observer import Outcome, Phase, Watch
from sparktier.serving.gateway.core.place import Place
from sparktier.serving.gateway.engine_errors import from_engine
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.routing import Replica
from sparktier.serving.gateway.tenants.allowance import Permit
from sparktier.serving.gateway.usage import asking

_UNAVAILABLE = 503
_log = logging.getLogger(__name__)


class _NoRoom(Exception):
    """The replica has no room for the request."""


@dataclass(frozen=True)
class _Begun:
    """The first messages of an answer, and those that follow; of a whole one all is in `first`."""

    first: list[Message]
    following: AsyncGenerator[list[Message]]


@dataclass(frozen=True)
class Admitted:
    """A request that may run once its place has come: what its engine gets, and what it holds meanwhile.

    `asked_tier` is the one that it asked for, where `tier` serves it instead.
    """

    ask: Ask
    body: Mapping[str, Any] = field(repr=False)
    tier: str
    asked_tier: str | None
    users: int
    engine_id: str
    permit: Permit
    place: Place


class Answer:
    """Either `whole` or `events` is asked for, once.

    `tier` is the one that serves the request, `asked_tier` the one that it asked for, where that is another one.
    """

    def __init__(
        self,
        admitted: Admitted,
        *,
        client: AsyncReplicaClient,
        meter: Meter,
        watch: Watch,
        heartbeat_s: float,
    ) -> None:
        self.tier, self.asked_tier = admitted.tier, admitted.asked_tier
        self._admitted = admitted
        self._client = client
        self._meter = meter
        self._watch = watch
        self._heartbeat_s = heartbeat_s
        self._restated = self._new_restatement()
        self._upstream: OpenAnswer | None = None
        self._opening: asyncio.Task[_Begun] | None = None
        self._started = self._settled = False

    async def whole(self) -> Message:
        """Return the whole answer.

        Raises:
            Refused: it found no room in time, or the engine refused the request or failed on it.
            ReplicaLost: the replica was lost.
        """
        begun = await self._begin()
        self._watch.reached(Phase.FIRST_TOKEN)
        answer = self._restated.whole(begun.first[0])
        await self._end(complete=True)
        return answer

    async def events(self) -> AsyncGenerator[list[Message]]:
        """Yield the messages of a stream, those of one chunk at a time, and `[]` where none came for a while.

        Raises what `whole` does, also after messages.
        """
        opening = self._opening = asyncio.ensure_future(self._begin())
        while not (await asyncio.wait({opening}, timeout=self._heartbeat_s))[0]:
            yield []
        begun = opening.result()
        self._watch.reached(Phase.FIRST_TOKEN)
        if begun.first:
            yield begun.first
        place = self._admitted.place
        async with aclosing(begun.following) as following:
            try:
                async for messages in following:
                    if messages:
                        place.tokens()
                    yield messages
            except ReplicaLost:
                place.lost()
                raise
        await self._end(complete=True)

    def abort(self) -> None:
        """Close the connection to the replica now, which ends the request in its engine."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
        if self._upstream is not None:
            self._upstream.close()

    async def close(self) -> None:
        """Abort what is left, and end the record of use."""
        self.abort()
        if self._opening is not None:
            # It may have opened in the same turn; a failure has been raised where it was awaited.
            await asyncio.wait({self._opening})
            if not self._opening.cancelled() and self._opening.exception() is None:
                self.abort()
        await self._end(complete=False)

    def outcome(self, status: int, code: str = "") -> Outcome:
        """Return how the request ended, for observers."""
        tokens = self._restated.tokens
        place = self._admitted.place
        engine_id, times = self._admitted.engine_id, self._restated.times
        return Outcome(
            status,
            code,
            self.tier,
            None if place.last is None else place.last.number,
            tokens.prompt,
            tokens.completion,
            engine_id,
            times,
            asked_tier=self.asked_tier,
            waited_ms=_ms(place.waited_s),
            predicted_wait_ms=_ms(place.predicted_wait_s),
        )

    def lost(self, error: ReplicaLost) -> None:
        """Log why the replica of the request was lost."""
        replica = self._admitted.place.last
        ids = self._admitted.ask.request_id, self._admitted.engine_id
        number = None if replica is None else replica.number
        _log.warning("request %s (%s in the engine): replica %s was lost: %s", *ids, number, error)

    async def _begin(self) -> _Begun:
        """Return the first that a replica answers: where one has no room, or is lost before, another is asked."""
        place, streams = self._admitted.place, self._admitted.ask.streams
        while True:
            replica = await place.replica()
            await self._start(replica)
            self._watch.reached(Phase.SENT)
            try:
                async with place.unless_it_hangs(streams=streams):
                    return await self._attempt(replica, streams=streams)
            except _NoRoom:
                self._drop()
                place.no_room()
            except ReplicaLost as error:
                self._drop()
                if not place.may_go_on(error):
                    raise
                self.lost(error)
                place.go_on()

    async def _attempt(self, replica: Replica, *, streams: bool) -> _Begun:
        admitted = self._admitted
        content = to_json(asking(admitted.body) | self._ids())
        upstream = await self._client.open(replica.url + admitted.ask.kind, content, self._headers())
        self._upstream = upstream
        if upstream.status == _UNAVAILABLE and upstream.header(ROOM_HEADER) == NO_ROOM:
            raise _NoRoom
        if streams and upstream.is_event_stream:
            following = batches(upstream.chunks(idle_s=self._heartbeat_s), self._restated)
            async for first in following:
                if first:
                    return _Begun(first, following)
            return _Begun([], following)
        answer = await upstream.read()
        if streams or upstream.status >= 400:
            raise self._refusal(upstream.status, answer)
        return _Begun([_object(answer)], _nothing())

    def _drop(self) -> None:
        """Forget a replica that has delivered nothing."""
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        self._restated = self._new_restatement()

    def _new_restatement(self) -> Restatement:
        return Restatement(self._admitted.body, tier=self.tier, asked_tier=self.asked_tier)

    def _ids(self) -> dict[str, Any]:
        """Return the fields by which the engine knows the request; of several choices only these keep them."""
        admitted, trace = self._admitted, self._watch.traceparent
        params = {**admitted.body.get("custom_params", {}), REQUEST_PARAM: admitted.engine_id}
        if trace is not None:
            params[TRACE_PARAM] = trace
        return {"rid": admitted.engine_id, "custom_params": params}

    def _headers(self) -> dict[str, str]:
        traced = {} if self._watch.traceparent is None else {"traceparent": self._watch.traceparent}
        brought = {TIER_HEADER: str(self._admitted.place.tier), USERS_HEADER: str(self._admitted.users)}
        return {REQUEST_ID_HEADER: self._admitted.engine_id, **brought, **traced}

    async def _start(self, replica: Replica) -> None:
        admitted, ask = self._admitted, self._admitted.ask
        self._started = True
        await self._meter.started(
            Started(
                engine_id=admitted.engine_id,
                request_id=ask.request_id,
                tenant=ask.tenant.name,
                tier=self.tier,
                kind=ask.kind,
                users=admitted.users,
                replica=replica.number,
                url=replica.url,
            )
        )

    async def _end(self, *, complete: bool) -> None:
        if self._settled:
            return
        self._settled = True
        tokens = self._restated.tokens
        if tokens.total is not None:
            self._admitted.permit.settle(tokens.total, now_s=time.monotonic())
        if self._started:
            record = Ended(self._admitted.engine_id, tokens.prompt, tokens.completion, complete)
            await self._meter.ended(record)

    def _refusal(self, status: int, content: bytes) -> Refused:
        """Return what the engine refused; it has used no tokens."""
        self._admitted.permit.settle(0, now_s=time.monotonic())
        return from_engine(status, content, asked=self._admitted.body)


async def _nothing() -> AsyncGenerator[list[Message]]:
    return
    yield


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _object(content: bytes) -> Message:
    try:
        found = from_json(content)
    except ValueError as error:
        raise ReplicaLost(f"the answer is no JSON ({error})"[:200]) from error
    if not isinstance(found, dict):
        raise ReplicaLost("the answer is no object")
    return found
