"""Sees each request from its sender's key to its last byte: tier, admission, route, forwarding and metering."""

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator

from sparktier.configs.errors import ReplicaLost
from sparktier.configs.settings.server import ServerSettings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.access import Access, engine_fields
from sparktier.serving.gateway.core.admission import RETRY_AFTER_S, Admission, not_ready
from sparktier.serving.gateway.core.answer import Admitted, Answer
from sparktier.serving.gateway.core.ask import Ask
from sparktier.serving.gateway.core.meter import Meter, Unmetered
from sparktier.serving.gateway.core.observer import Observer, Outcome, Phase, Unobserved, Watch
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests.load import load_of
from sparktier.serving.gateway.requests.rules import checked
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.tenants.directory import Tenant

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
        self.admission = Admission(table, lambda: access.tiers)

    @property
    def failed_reloads(self) -> Counter[str]:
        """How often each kind of file could not be read again."""
        return self._access.failed_reloads

    async def authenticate(self, authorization: str | None) -> Tenant:
        """Return who asks, by the value of `Authorization`. Raises Refused, see `Access.identify`."""
        return await self._access.identify(authorization)

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
        limits = next((replica.limits for replica in self.table.serving if replica.limits is not None), None)
        if limits is None:
            raise not_ready()
        body = checked(ask.kind, ask.body, model=self.model, limits=limits)
        load = load_of(body)
        permit = self._access.admit(load, ask.tenant, now_s=time.monotonic())
        with contextlib.ExitStack() as held:
            held.callback(permit.close)
            try:
                secret = ask.tenant.prefix_key(body.get("extra_key")) or ""
                place = self.admission.arrive(tier, ask.tenant.name, load, secret=secret)
            except Refused:
                permit.settle(0, now_s=time.monotonic())
                raise
            held.callback(place.close)
            body |= engine_fields(body, place.tier, ask.tenant) | self._access.tiers.priority(place.tier)
            self._in_flight += 1
            held.callback(self._leave)
            name = self._access.tiers.names[place.tier]
            asked = None if place.asked_tier is None else self.admission.name(place.asked_tier)
            yield Admitted(ask, body, name, asked, load.users, uuid.uuid4().hex, permit, place)

    def _leave(self) -> None:
        self._in_flight -= 1


def _outcome(answer: Answer | None, status: int, code: str = "", *, tier: str = "") -> Outcome:
    return Outcome(status, code, tier) if answer is None else answer.outcome(status, code)


def _ended(watch: Watch, answer: Answer | None, error: Refused) -> Refused:
    """Tell `watch` of `error`, and return it."""
    watch.ended(_outcome(answer, error.status, error.code or "", tier=error.tier))
    return error
