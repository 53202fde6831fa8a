"""The replica's own say on who comes in: it counts users by tier, refuses what its plan has no room for, and tells.

Requests are refused before they are read. All of it runs in the event loop of the replica's HTTP process.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sparktier.cluster.admission.box import Box
from sparktier.configs.contracts.message import RunState
from sparktier.configs.contracts.plan import Plan
from sparktier.configs.contracts.room import NO_ROOM, ROOM_HEADER, TIER_HEADER, USERS_HEADER, Room
from sparktier.configs.settings.tiers import TierSettings

TOLD_EVERY_S = 1.0
_REFUSED = 503


@dataclass(frozen=True)
class StartingRoom:
    """Most users by tier (None: no bound) until the first plan, from the settings."""

    caps: Mapping[int, int | None]
    default_tier: int
    yielding: frozenset[int] = frozenset()


def starting_room(tiers: Mapping[int, TierSettings], *, default_tier: int, running: int) -> StartingRoom:
    """Return what the operator's bounds on `tiers` allow a replica that runs `running` requests at once."""
    caps = {tier_id: tier.most_users(running) for tier_id, tier in tiers.items()}
    return StartingRoom(caps, default_tier, frozenset(tier_id for tier_id, tier in tiers.items() if tier.yields))


class RoomKeeper:
    """The room of this replica. A plan's caps hold until the next plan, also after its time is over."""

    def __init__(self, start: StartingRoom) -> None:
        self._box = Box(start.caps, start.default_tier, start.yielding)
        self._seq = self._plan_version = 0
        self._changed = asyncio.Event()
        self.state: RunState = "serving"

    @property
    def caps(self) -> dict[int, int]:
        """Most users of each tier that is bounded."""
        return self._box.bounds

    def put(self, plan: Plan, replica_id: str) -> None:
        """Keep what `plan`, which the ranks have taken, says of this replica."""
        part = next(each for each in plan.replicas if each.replica_id == replica_id)
        self.state, self._plan_version = part.state, plan.version
        caps = {tier: part.tiers[tier].cap_users if tier in part.tiers else None for tier in plan.tiers}
        yielding = frozenset(tier for tier, terms in plan.tiers.items() if terms.yields)
        self._box.put(caps, default_tier=plan.default_tier, yielding=yielding, open=part.state == "serving")
        self._tell()

    def take(self, tier: int, users: int) -> int | None:
        """Count users of `tier` and return the tier that they are counted under; None if there is no room."""
        served = self._box.take(tier, users)
        if served is not None:
            self._tell()
        return served

    def release(self, served: int, users: int) -> None:
        """Let users go that `take` counted under `served`."""
        self._box.release(served, users)
        self._tell()

    def message(self) -> Room:
        """Return the room as it is now."""
        box = self._box
        return Room(seq=self._seq, plan_version=self._plan_version, room=box.room, caps=box.bounds)

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield a line of JSON now, after each change, and at least once a second."""
        while True:
            changed = self._changed
            yield self.message().model_dump_json().encode() + b"\n"
            try:
                async with asyncio.timeout(TOLD_EVERY_S):
                    await changed.wait()
            except TimeoutError:
                self._seq += 1

    def _tell(self) -> None:
        self._seq += 1
        self._changed.set()
        self._changed = asyncio.Event()


def room_routes(room: RoomKeeper) -> APIRouter:
    """Return the route by which gateways follow `room`."""
    router = APIRouter()

    @router.get("/sparktier/room")
    async def follow() -> Response:
        return StreamingResponse(room.messages(), media_type="application/x-ndjson")

    return router


class RoomDoor:
    """Passes on to `app` what there is room for, counted until its last byte; the rest is answered 503.

    A request without the gateway's headers, as a probe, is passed on and not counted.
    """

    def __init__(self, app: ASGIApp, *, room: RoomKeeper) -> None:
        self._app = app
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        brought = _brought(scope)
        if brought is None:
            await self._app(scope, receive, send)
            return
        tier, users = brought
        served = self._room.take(tier, users)
        if served is None:
            await self._refusal()(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._room.release(served, users)

    def _refusal(self) -> Response:
        content = self._room.message().model_dump_json()
        return Response(content, _REFUSED, headers={ROOM_HEADER: NO_ROOM}, media_type="application/json")


def _brought(scope: Scope) -> tuple[int, int] | None:
    """Return the tier and the number of users that the headers of a request name."""
    if scope["type"] != "http":
        return None
    headers = Headers(scope=scope)
    tier, users = headers.get(TIER_HEADER, ""), headers.get(USERS_HEADER, "")
    return (int(tier), int(users)) if tier.isdecimal() and users.isdecimal() and int(users) else None
