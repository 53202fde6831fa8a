"""Sees each request from its sender's key to its last byte: tier, admission, route, forwarding and metering."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator

from sparktier.configs.errors import ReplicaLost
from sparktier.configs.settings.server import ServerSettings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.access import Access, engine_fields
from sparktier.serving.gateway.core.answer import Admitted, Answer
from sparktier.serving.gateway.core.ask import Ask
from sparktier.serving.gateway.core.meter import Meter, Unmetered
from sparktier.serving.gateway.core.observer import Observer, Outcome, Phase, Unobserved, Watch
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests.load import load_of
from sparktier.serving.gateway.requests.rules import checked
from sparktier.serving.gateway.routing import ReplicaTable, RequestInFlight
from sparktier.serving.gateway.tenants.directory import Tenant

RETRY_AFTER_S = 5
LOST = "The replica that served this request was lost before it finished. Send the request again."
LATE = "This request took longer than the server allows (server.request_timeout_s) and was ended."
_HUNG_UP = 499


class Gateway:
    """The core that all transports share. A request is cancelled by cancelling the task that answers it."""

    def __init__(
        self,
        table: ReplicaTable,
        server: ServerSettings,
        client: AsyncReplicaClient,
        *,
        model: str,
        access: Access,
        meter: Meter | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.table = table
        self.server = server
        self.model = model
        self._client = client
        self._access = access
        self._meter = meter or Unmetered()
        self._observer = observer or Unobserved()
        self._in_flight = 0

    def authenticate(self, authorization: str | None) -> Tenant:
        """Return who asks, by the value of `Authorization`. Raises Refused (401) where a key is needed and missing."""
        return self._access.authenticate(authorization)

    def require_place(self) -> None:
        """Raise Refused (429) where no more requests fit. A transport asks before it reads a request, too."""
        most = self.server.max_concurrent_requests
        if self._in_flight >= most:
            message = f"The server answers {most} requests at once. Try again later."
            raise Refused(message, status=429, code="too_many_requests", retry_after_s=RETRY_AFTER_S)

    @contextlib.asynccontextmanager
    async def answering(self, ask: Ask) -> AsyncIterator[Answer]:
        """Yield the answer of `ask`; what the request holds is released when the body ends.

        Raises:
            Refused: it can't be served, or failed, before or while the body reads the answer.
        """
        watch = self._observer.watch(ask)
        answer: Answer | None = None
        try:
            async with asyncio.timeout_at(ask.deadline_s):
                with self._admitted(ask) as admitted:
                    answer = self._answer(admitted, watch)
                    watch.reached(Phase.ADMITTED)
                    try:
                        yield answer
                    finally:
                        await answer.close()
        except TimeoutError as error:
            raise _ended(watch, answer, Refused(LATE, status=504, code="timeout")) from error
        except ReplicaLost as error:
            if answer is not None:
                answer.lost(error)
            raise _ended(watch, answer, Refused(LOST, status=502, code="replica_lost")) from error
        except Refused as error:
            raise _ended(watch, answer, error) from None
        except BaseException as error:
            hung_up = isinstance(error, asyncio.CancelledError | GeneratorExit)
            watch.ended(_outcome(answer, _HUNG_UP if hung_up else 500))
            raise
        watch.ended(_outcome(answer, 200))

    def _answer(self, admitted: Admitted, watch: Watch) -> Answer:
        return Answer(
            admitted,
            table=self.table,
            client=self._client,
            meter=self._meter,
            watch=watch,
            heartbeat_s=self.server.heartbeat_s,
        )

    @contextlib.contextmanager
    def _admitted(self, ask: Ask) -> Iterator[Admitted]:
        """Hold what the request needs; all of it is taken in one turn of the event loop, so that none is overtaken."""
        self.require_place()
        tier = self._access.tier(ask.tier, ask.tenant)
        replica = self.table.pick()
        if replica is None or replica.limits is None:
            message = "No replica is ready. Try again in a few seconds."
            raise Refused(message, status=503, code="not_ready", retry_after_s=RETRY_AFTER_S)
        body = checked(ask.kind, ask.body, model=self.model, limits=replica.limits)
        load = load_of(body)
        permit = self._access.admit(load, ask.tenant, now_s=time.monotonic())
        body |= engine_fields(body, tier, ask.tenant)
        place = RequestInFlight(replica)
        self._in_flight += 1
        try:
            name = self._access.tiers.names[tier]
            yield Admitted(ask, body, name, load.users, uuid.uuid4().hex, permit, place)
        finally:
            self._in_flight -= 1
            place.close()
            permit.close()


def _outcome(answer: Answer | None, status: int, code: str = "") -> Outcome:
    return Outcome(status, code) if answer is None else answer.outcome(status, code)


def _ended(watch: Watch, answer: Answer | None, error: Refused) -> Refused:
    """Tell `watch` of `error`, and return it."""
    watch.ended(_outcome(answer, error.status, error.code or ""))
    return error
