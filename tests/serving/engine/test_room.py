"""The replica's own say on who comes in: it refuses before a request is read, counts to the last byte, and tells."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.plan import Plan, ReplicaPlan, TierCaps, TierPromise
from sparktier.configs.contracts.room import TIER_HEADER, USERS_HEADER, Room
from sparktier.configs.settings.settings import TierSettings
from sparktier.serving.engine import room as module
from sparktier.serving.engine.room import RoomDoor, RoomKeeper, StartingRoom, starting_room

STANDARD, GOLD = 0, 5
START = StartingRoom({STANDARD: None, GOLD: 2}, STANDARD)


def plan(version: int, cap_users: int | None, state: Any = "serving") -> Plan:
    part = ReplicaPlan(
        replica_id="replica-0",
        url="http://h:1",
        state=state,
        rung=0,
        rows=0,
        tiers={GOLD: TierCaps(cap_users=cap_users)},
    )
    tiers = {STANDARD: TierPromise(name="standard"), GOLD: TierPromise(name="gold", promise_tok_s=9.0)}
    return Plan(
        epoch=2, version=version, issued_at_ms=1, ttl_ms=None, default_tier=STANDARD, tiers=tiers, replicas=(part,)
    )


class Engine:
    """SGLang's application: it answers once it is told to, and notes which requests it has read."""

    def __init__(self) -> None:
        self.read = 0
        self.may_end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.read += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b"all"})


async def asked(door: RoomDoor, tier: object = None, users: object = None) -> tuple[int, dict[str, str], bytes]:
    headers = [(TIER_HEADER, tier), (USERS_HEADER, users)]
    raw = [(name.encode(), str(value).encode()) for name, value in headers if value is not None]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("a request that is refused was read")

    await door({"type": "http", "method": "POST", "path": "/v1/completions", "headers": raw}, receive, send)
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, sent[1]["body"]


@contextlib.asynccontextmanager
async def running(*requests: "asyncio.Task[Any]") -> AsyncIterator[None]:
    for _ in range(5):
        await asyncio.sleep(0)
    yield
    for request in requests:
        request.cancel()
    await asyncio.wait(requests)


async def test_what_there_is_no_room_for_is_refused_unread_with_the_room() -> None:
    engine, keeper = Engine(), RoomKeeper(START)
    door = RoomDoor(engine, room=keeper)
    async with running(asyncio.create_task(asked(door, GOLD, 2))):
        status, head, body = await asked(door, GOLD, 1)
        assert (status, head["x-sparktier-room"]) == (503, "none")
        told = read_message(Room, body)
        assert (told.room, told.caps) == ({GOLD: 0}, {GOLD: 2})
        assert engine.read == 1


async def test_users_go_with_the_last_byte_or_with_the_client() -> None:
    engine, keeper = Engine(), RoomKeeper(START)
    door = RoomDoor(engine, room=keeper)
    whole, gone = (asyncio.create_task(asked(door, GOLD, 1)) for _ in range(2))
    async with running(whole, gone):
        assert keeper.message().room == {GOLD: 0}
        gone.cancel()
        await asyncio.wait([gone])
        assert keeper.message().room == {GOLD: 1}
        engine.may_end.set()
        assert (await whole)[0] == 200
        assert keeper.message().room == {GOLD: 2}


@pytest.mark.parametrize("headers", [(), (GOLD,), ("x", 1), (GOLD, 0), (GOLD, "-1")])
async def test_a_request_without_the_gateway_s_headers_is_passed_on(headers: tuple[Any, ...]) -> None:
    engine, keeper = Engine(), RoomKeeper(StartingRoom({GOLD: 0}, GOLD))
    engine.may_end.set()
    assert (await asked(RoomDoor(engine, room=keeper), *headers))[0] == 200


async def test_a_plan_s_caps_hold_and_a_drained_replica_takes_nothing() -> None:
    keeper = RoomKeeper(START)
    keeper.put(plan(1, 7), "replica-0")
    assert (keeper.message().room, keeper.message().plan_version, keeper.caps) == ({GOLD: 7}, 1, {GOLD: 7})
    assert keeper.take(GOLD, 3) == GOLD
    keeper.put(plan(2, 7, "draining"), "replica-0")
    assert keeper.message().room == {STANDARD: 0, GOLD: 0}
    assert (keeper.take(STANDARD, 1), keeper.state) == (None, "draining")


async def test_each_change_is_told_and_at_least_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = RoomKeeper(START)
    lines = keeper.messages()
    first = read_message(Room, await anext(lines))
    assert keeper.take(GOLD, 1) == GOLD
    second = read_message(Room, await anext(lines))
    assert (first.room, second.room) == ({GOLD: 2}, {GOLD: 1})
    monkeypatch.setattr(module, "TOLD_EVERY_S", 0.01)
    third = read_message(Room, await anext(lines))
    assert third.room == second.room
    assert first.seq < second.seq < third.seq


def test_an_operator_s_bounds_are_kept_until_the_first_plan() -> None:
    tiers = {
        0: TierSettings(name="a", default=True),
        1: TierSettings(name="b", cap_users=5, share_frac=0.25),
        2: TierSettings(name="c", cap_users=1, share_frac=0.25, yields=True),
    }
    assert starting_room(tiers, default_tier=0, running=16) == StartingRoom({0: None, 1: 4, 2: 1}, 0, frozenset({2}))
