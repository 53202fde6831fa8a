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
from sparktier.configs.errors import ReplicaLost, ReplicaUnreachable
from sparktier.configs.plan_keys import REQUEST_PARAM, TRACE_PARAM
from sparktier.serving.clients.replica import AsyncReplicaClient, OpenAnswer
from sparktier.serving.gateway.core.ask import Ask
from sparktier.serving.gateway.core.events import Message, Restatement, batches
from sparktier.serving.gateway.core.meter import Ended, Meter, Started
from sparktier.serving.gateway.core.observer import Outcome, Phase, Watch
from sparktier.serving.gateway.engine_errors import from_engine
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.routing import Replica, ReplicaTable, RequestInFlight
from sparktier.serving.gateway.tenants.allowance import Permit
from sparktier.serving.gateway.usage import asking

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Admitted:
    """A request that may run: what its engine gets, and what it holds meanwhile."""

    ask: Ask
    body: Mapping[str, Any] = field(repr=False)
    tier: str
    users: int
    engine_id: str
    permit: Permit
    place: RequestInFlight


class Answer:
    """Either `whole` or `events` is asked for, once. `tier` is the one that serves the request."""

    def __init__(
        self,
        admitted: Admitted,
        *,
        table: ReplicaTable,
        client: AsyncReplicaClient,
        meter: Meter,
        watch: Watch,
        heartbeat_s: float,
    ) -> None:
        self.tier = admitted.tier
        self._admitted = admitted
        self._table = table
        self._client = client
        self._meter = meter
        self._watch = watch
        self._heartbeat_s = heartbeat_s
        self._restated = Restatement(admitted.body, tier=admitted.tier)
        self._upstream: OpenAnswer | None = None
        self._opening: asyncio.Task[OpenAnswer] | None = None
        self._started = self._settled = False

    async def whole(self) -> Message:
        """Return the whole answer.

        Raises:
            Refused: the engine refused the request, or failed on it.
            ReplicaLost: the replica was lost.
        """
        upstream = self._upstream = await self._open()
        content = await upstream.read()
        if upstream.status >= 400:
            raise self._refusal(upstream.status, content)
        self._watch.reached(Phase.FIRST_TOKEN)
        answer = self._restated.whole(_object(content))
        await self._end(complete=True)
        return answer

    async def events(self) -> AsyncGenerator[list[Message]]:
        """Yield the messages of a stream, those of one chunk at a time, and `[]` where none came for a while.

        Raises what `whole` does, also after messages.
        """
        opening = self._opening = asyncio.ensure_future(self._open())
        while not (await asyncio.wait({opening}, timeout=self._heartbeat_s))[0]:
            yield []
        upstream = self._upstream = opening.result()
        if not upstream.is_event_stream:
            raise self._refusal(upstream.status, await upstream.read())
        first = True
        async with aclosing(upstream.chunks(idle_s=self._heartbeat_s)) as chunks:
            async for messages in batches(chunks, self._restated):
                if first and messages:
                    first = False
                    self._watch.reached(Phase.FIRST_TOKEN)
                yield messages
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
        if self._opening is not None and self._upstream is None:
            # It may have opened in the same turn; a failure has been raised where it was awaited.
            await asyncio.wait({self._opening})
            if not self._opening.cancelled() and self._opening.exception() is None:
                self._opening.result().close()
        await self._end(complete=False)

    def outcome(self, status: int, code: str = "") -> Outcome:
        """Return how the request ended, for observers."""
        tokens = self._restated.tokens
        replica = self._admitted.place.replica.number
        engine_id, times = self._admitted.engine_id, self._restated.times
        return Outcome(status, code, self.tier, replica, tokens.prompt, tokens.completion, engine_id, times)

    def lost(self, error: ReplicaLost) -> None:
        """Log why the replica of the request was lost."""
        replica = self._admitted.place.replica
        ids = self._admitted.ask.request_id, self._admitted.engine_id
        _log.warning("request %s (%s in the engine): replica %d was lost: %s", *ids, replica.number, error)

    async def _open(self) -> OpenAnswer:
        """Send the request to its replica, or to the next one where it takes no connection."""
        admitted = self._admitted
        content = to_json(asking(admitted.body) | self._ids())
        tried: list[Replica] = []
        while True:
            replica = admitted.place.replica
            await self._start(replica)
            try:
                self._watch.reached(Phase.SENT)
                self._restated.waited_ms = 1000.0 * (time.monotonic() - admitted.ask.received_s)
                return await self._client.open(replica.url + admitted.ask.kind, content, self._headers())
            except ReplicaUnreachable as error:
                # Nothing was sent, so another replica can take it.
                tried.append(replica)
                following = self._table.pick(besides=tried)
                if following is None:
                    raise
                self.lost(error)
                admitted.place.move_to(following)

    def _ids(self) -> dict[str, Any]:
        """Return the fields by which the engine knows the request; of several choices only these keep them."""
        admitted, trace = self._admitted, self._watch.traceparent
        params = {**admitted.body.get("custom_params", {}), REQUEST_PARAM: admitted.engine_id}
        if trace is not None:
            params[TRACE_PARAM] = trace
        return {"rid": admitted.engine_id, "custom_params": params}

    def _headers(self) -> dict[str, str]:
        traced = {} if self._watch.traceparent is None else {"traceparent": self._watch.traceparent}
        return {REQUEST_ID_HEADER: self._admitted.engine_id, **traced}

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


def _object(content: bytes) -> Message:
    try:
        found = from_json(content)
    except ValueError as error:
        raise ReplicaLost(f"the answer is no JSON ({error})"[:200]) from error
    if not isinstance(found, dict):
        raise ReplicaLost("the answer is no object")
    return found
