"""A replica that keeps its room by the engine's own code and answers as a test says, and a gateway that follows."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sparktier.configs.contracts.message import RunState
from sparktier.configs.contracts.plan import Plan, ReplicaPlan, TierCaps, TierPromise
from sparktier.configs.settings.settings import GatewaySettings, ServerSettings, TierSettings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.engine.room import RoomDoor, RoomKeeper, StartingRoom
from sparktier.serving.gateway.access import Access
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.http.front import front
from sparktier.serving.gateway.room_following import RoomFollowing
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.tier_resolution import TierTable
from support.gateways.fronts import listening, serving

STANDARD, GOLD = 3, 5
USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
CHOICE = {"index": 0, "text": "a"}


@dataclass
class RoomyReplica:
    """Answers once `may_answer` is set; `most` is how many users of a tier it has had at once."""

    room: RoomKeeper
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    running: dict[int, int] = field(default_factory=dict)
    most: dict[int, int] = field(default_factory=dict)
    asked: int = 0
    tells: bool = True
    url: str = ""
    door: "_Door" = field(init=False)

    async def completions(self, request: Request) -> Response:
        """Answer whole, or as a stream of one token."""
        body = await request.json()
        tier, users = body["custom_params"]["sparktier_tier"], body.get("n", 1)
        self.asked += 1
        self.running[tier] = self.running.get(tier, 0) + users
        self.most[tier] = max(self.most.get(tier, 0), self.running[tier])
        if body.get("stream"):
            return StreamingResponse(self._events(tier, users), media_type="text/event-stream")
        try:
            await self.may_answer.wait()
        finally:
            self.running[tier] -= users
        return JSONResponse({"choices": [CHOICE], "usage": USAGE})

    async def _events(self, tier: int, users: int) -> AsyncIterator[bytes]:
        try:
            yield _event({"choices": [CHOICE], "usage": USAGE})
            await self.may_answer.wait()
            yield _event({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n"
        finally:
            self.running[tier] -= users

    async def follow(self, request: Request) -> Response:
        """Tell the room, unless it is told not to; the stream of a process that is gone breaks off."""
        return StreamingResponse(self._messages(self.room)) if self.tells else Response(status_code=404)

    async def _messages(self, room: RoomKeeper) -> AsyncIterator[bytes]:
        async for line in room.messages():
            if room is not self.room:
                return
            yield line

    def start_anew(self, caps: dict[int, int | None]) -> None:
        """Be another process, which has nothing."""
        gone, self.room = self.room, RoomKeeper(StartingRoom(caps, STANDARD))
        self.door.room = self.room
        gone.release(gone.take(STANDARD, 1) or 0, 1)

    def drain(self) -> None:
        """Take the plan of a controller that drains it."""
        self.take_plan(self.room.caps, state="draining")

    def take_plan(self, caps: Mapping[int, int], *, state: RunState = "serving", ttl_ms: int | None = None) -> None:
        """Take a controller's plan."""
        bounds = {tier: TierCaps(cap_users=users) for tier, users in caps.items()}
        part = ReplicaPlan(replica_id="r", url="http://h:1", state=state, rung=0, rows=0, tiers=bounds)
        tiers = {tier: TierPromise(name=str(tier)) for tier in (STANDARD, GOLD)}
        plan = Plan(
            epoch=2,
            version=1,
            issued_at_ms=1,
            ttl_ms=ttl_ms,
            default_tier=STANDARD,
            tiers=tiers,
            replicas=(part,),
        )
        self.room.put(plan, "r")


class _Door:
    """The engine's door, before the room of the process that runs now."""

    def __init__(self, app: ASGIApp, room: RoomKeeper) -> None:
        self._app, self.room = app, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await RoomDoor(self._app, room=self.room)(scope, receive, send)


def _event(message: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"


@contextlib.asynccontextmanager
async def roomy_replica(caps: dict[int, int | None]) -> AsyncIterator[RoomyReplica]:
    """Yield a replica that serves with these caps."""
    replica = RoomyReplica(RoomKeeper(StartingRoom(caps, STANDARD)))
    routes = [
        Route("/v1/completions", replica.completions, methods=["POST"]),
        Route("/sparktier/room", replica.follow),
    ]
    replica.door = _Door(Starlette(routes=routes), replica.room)
    async with listening(replica.door) as (url, _):
        replica.url = url
        yield replica


@dataclass(frozen=True)
class Front:
    """A gateway and the address of its front."""

    gateway: Gateway
    url: str


@contextlib.asynccontextmanager
async def following_front(*replicas: RoomyReplica, tells: bool = True, **gold: Any) -> AsyncIterator[Front]:
    """Yield a front before `replicas` that follows their room, and has heard it if they tell; `gold` is that tier."""
    tiers = {STANDARD: TierSettings(name="standard", default=True), GOLD: TierSettings(name="gold", **gold)}
    access = Access(TierTable(tiers, GatewaySettings()))
    table = ReplicaTable(tuple(serving(number, replica.url) for number, replica in enumerate(replicas)))
    async with AsyncReplicaClient() as client:
        gateway = Gateway(table, ServerSettings(), client, model="tiny", access=access)
        following = asyncio.create_task(RoomFollowing(table, client, gateway.admission.look).run())
        async with listening(front(gateway)) as (url, _):
            async with asyncio.timeout(30):
                while tells and any(each.room.room is None for each in table.replicas):
                    await asyncio.sleep(0.01)
            try:
                yield Front(gateway, url)
            finally:
                following.cancel()
                await asyncio.wait([following])
