"""Gateways before replicas that keep their room: caps hold, requests wait and are told, and nothing is kept."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from sparktier.serving.gateway.core import admission
from support.gateways.fronts import ASKED
from support.gateways.roomy_replica import GOLD, STANDARD, Front, RoomyReplica, following_front, roomy_replica


async def post(front: Front, *, tier: str = "standard", **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=front.url) as client:
        headers = {"x-sparktier-tier": tier}
        return await client.post("/v1/completions", json=ASKED | fields, headers=headers, timeout=60)


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not met():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def occupied(front: Front, replica: RoomyReplica, tier: str = "gold") -> AsyncIterator["asyncio.Task[Any]"]:
    """Hold a place of a tier by a stream that has its first token."""
    before = replica.asked
    holder = asyncio.create_task(post(front, tier=tier, stream=True))
    await until(lambda: replica.asked == before + 1)
    yield holder
    replica.may_answer.set()
    assert (await holder).status_code == 200


def nothing_is_left(*fronts: Front, replicas: tuple[RoomyReplica, ...]) -> bool:
    tables = [front.gateway.table.replicas for front in fronts]
    return (
        all(replica.room.caps == replica.room.message().room for replica in replicas)
        and all((each.users, each.in_flight, each.progress.streams) == (0, 0, 0) for table in tables for each in table)
        and all(not front.gateway.admission._places for front in fronts)
        and all(front.gateway._in_flight == 0 for front in fronts)
    )


async def test_two_gateways_keep_the_caps_between_them() -> None:
    async with (
        roomy_replica({STANDARD: 2, GOLD: None}) as replica,
        following_front(replica) as one,
        following_front(replica) as two,
    ):
        asking = [asyncio.create_task(post(front, n=1 + place % 2)) for place in range(6) for front in (one, two)]
        await until(lambda: replica.running.get(STANDARD) == 2)
        replica.may_answer.set()
        assert {(await answer).status_code for answer in asking} == {200}
        assert replica.most == {STANDARD: 2}
        await until(lambda: nothing_is_left(one, two, replicas=(replica,)))


async def test_who_finds_no_room_in_time_is_told_when_to_come_again() -> None:
    async with roomy_replica({STANDARD: None, GOLD: 1}) as replica, following_front(replica, ttft_ms=50) as front:
        async with occupied(front, replica):
            answer = await post(front, tier="gold")
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "no_room")
            assert int(answer.headers["retry-after"]) >= 1
            # Another tier's room is its own.
            replica.may_answer.set()
            assert (await post(front)).status_code == 200
        await until(lambda: nothing_is_left(front, replicas=(replica,)) or replica.room.caps != {GOLD: 1})


async def test_a_request_that_waits_is_let_through_by_the_next_message() -> None:
    async with roomy_replica({STANDARD: 1, GOLD: 1}) as replica, following_front(replica) as front:
        async with occupied(front, replica, "standard"):
            waits = asyncio.create_task(post(front))
            await until(lambda: front.gateway.admission._gate.waiting == {STANDARD: 1})
            assert replica.asked == 1
        assert (await waits).status_code == 200


async def test_a_downgrade_is_told() -> None:
    down = {"on_full": "downgrade", "downgrade_to": "standard", "promise_tok_s": 9.0}
    async with roomy_replica({STANDARD: None, GOLD: 1}) as replica, following_front(replica, **down) as front:
        async with occupied(front, replica):
            waits = asyncio.create_task(post(front, tier="gold"))
            await until(lambda: replica.running.get(STANDARD))
        answer = await waits
    assert (answer.headers["x-sparktier-tier"], answer.headers["x-sparktier-asked-tier"]) == ("standard", "gold")
    assert answer.json()["usage"]["sparktier"] == {"tier": "standard", "asked_tier": "gold"}


async def test_more_users_than_a_replica_ever_takes_are_refused_at_once() -> None:
    async with roomy_replica({STANDARD: 2, GOLD: 0}) as replica, following_front(replica) as front:
        answer = await post(front, n=3)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        assert replica.asked == 0


async def test_a_client_that_hangs_up_while_it_waits_leaves_the_queue() -> None:
    async with roomy_replica({STANDARD: 1, GOLD: 1}) as replica, following_front(replica) as front:
        async with occupied(front, replica, "standard"):
            waits = asyncio.create_task(post(front))
            await until(lambda: front.gateway.admission._gate.waiting)
            waits.cancel()
            await until(lambda: not front.gateway.admission._gate.waiting)
            assert replica.asked == 1
        await until(lambda: nothing_is_left(front, replicas=(replica,)))


async def test_a_replica_that_drains_takes_nothing_and_loses_nothing() -> None:
    async with (
        roomy_replica({STANDARD: 3, GOLD: 1}) as one,
        roomy_replica({STANDARD: 3, GOLD: 1}) as two,
        following_front(one, two) as front,
    ):
        async with occupied(front, one, "standard") as holder:
            one.drain()
            two.may_answer.set()
            await until(lambda: front.gateway.table.replicas[0].room.room == {STANDARD: 0, GOLD: 0})
            assert {(await post(front)).status_code for _ in range(3)} == {200}
            assert (one.asked, two.asked, holder.done()) == (1, 3, False)
        assert (await holder).text.endswith("data: [DONE]\n\n")


async def test_without_messages_the_last_caps_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparktier.cluster.admission.room_view.STALE_S", -1.0)
    async with roomy_replica({STANDARD: 2, GOLD: 1}) as replica, following_front(replica) as front:
        replica.tells = False
        asking = [asyncio.create_task(post(front)) for _ in range(4)]
        await until(lambda: replica.running.get(STANDARD) == 2)
        await asyncio.sleep(0.1)
        assert replica.asked == 2
        replica.may_answer.set()
        assert {(await answer).status_code for answer in asking} == {200}


async def test_after_a_plan_s_time_its_caps_hold() -> None:
    """The controller is gone for good."""
    async with roomy_replica({STANDARD: 5, GOLD: 1}) as replica, following_front(replica) as front:
        replica.take_plan({STANDARD: 1, GOLD: 1}, ttl_ms=1)
        await until(lambda: front.gateway.table.replicas[0].room.caps == {STANDARD: 1, GOLD: 1})
        asking = [asyncio.create_task(post(front)) for _ in range(3)]
        await until(lambda: front.gateway.admission._gate.waiting == {STANDARD: 2})
        replica.may_answer.set()
        assert {(await answer).status_code for answer in asking} == {200}
        assert replica.most == {STANDARD: 1}


async def test_a_replica_that_starts_anew_is_followed_anew() -> None:
    """The new process counts its messages from 0, and has other caps."""
    async with roomy_replica({STANDARD: 5, GOLD: 1}) as replica, following_front(replica) as front:
        view = front.gateway.table.replicas[0].room
        for _ in range(50):
            replica.room.release(replica.room.take(GOLD, 1) or 0, 1)
        await until(lambda: view.seq >= 100)
        replica.start_anew({STANDARD: 2, GOLD: 2})
        await until(lambda: view.caps == {STANDARD: 2, GOLD: 2})
        replica.may_answer.set()
        assert (await post(front, n=2)).status_code == 200


@pytest.mark.parametrize("line", [b"{}\n", b'{"schema_version":1}\n', b"\xff\n"])
async def test_a_replica_of_another_version_is_served_without_bounds(line: bytes, monkeypatch: Any) -> None:
    async def others(self: Any) -> AsyncIterator[bytes]:
        while True:
            yield line
            await asyncio.sleep(0.05)

    monkeypatch.setattr("sparktier.serving.engine.room.RoomKeeper.messages", others)
    async with roomy_replica({STANDARD: 1, GOLD: 1}) as replica, following_front(replica, tells=False) as front:
        replica.may_answer.set()
        assert {(await post(front)).status_code for _ in range(3)} == {200}


async def test_a_gateway_of_another_version_is_served_and_not_counted() -> None:
    """It sends no headers that tell of tier and users."""
    async with roomy_replica({STANDARD: 0, GOLD: 0}) as replica, httpx.AsyncClient() as client:
        replica.may_answer.set()
        body = ASKED | {"custom_params": {"sparktier_tier": STANDARD}}
        answer = await client.post(f"{replica.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_becomes_of_requests_all_places_come_back(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_LOOK_S", 0.02)
    rng, ends = random.Random(seed), list[str]()
    async with (
        roomy_replica({STANDARD: 3, GOLD: 2}) as one,
        roomy_replica({STANDARD: 2, GOLD: 1}) as two,
        following_front(one, two, ttft_ms=200) as front,
        following_front(one, two) as other,
    ):

        async def ask(place: int) -> None:
            await asyncio.sleep(rng.random())
            fields = {"stream": rng.random() < 0.5, "n": rng.choice([1, 1, 2])}
            asking = post(rng.choice([front, other]), tier=rng.choice(["standard", "gold"]), **fields)
            try:
                async with asyncio.timeout(rng.choice([0.05, 0.3, 60, 60, 60])):
                    answer = await asking
                    ends.append(str(answer.status_code))
            except TimeoutError:
                ends.append("hung up")

        async def answer_now_and_then() -> None:
            while True:
                await asyncio.sleep(0.05)
                for replica in (one, two):
                    replica.may_answer.set()
                    replica.may_answer = asyncio.Event()

        answering = asyncio.create_task(answer_now_and_then())
        await asyncio.gather(*(ask(place) for place in range(80)))
        answering.cancel()
        await until(lambda: nothing_is_left(front, other, replicas=(one, two)))
        for replica, caps in (one, {STANDARD: 3, GOLD: 2}), (two, {STANDARD: 2, GOLD: 1}):
            assert all(replica.most.get(tier, 0) <= cap for tier, cap in caps.items())
    assert set(ends) <= {"200", "429", "400", "hung up"}
    assert len(ends) == 80
    assert json.dumps(ends).count("200") > 10
