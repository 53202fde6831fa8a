"""Replicas that die before, during and after the first token, hang, are full, or answer what can't be read.

Each request ends in a right answer or in one declared error.
"""

import asyncio
import json
from typing import Any

import httpx
import pytest

from sparktier.cluster.admission import progress
from sparktier.serving.gateway.replica_life import Event
from support.gateways.fronts import DONE, TOKEN, fronted, post, serving
from support.scripted_replica import STREAM_END, STREAM_HEAD, Script, chunk, json_answer, scripted_replica


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


def lives(*, stream: bool) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        whole = STREAM_HEAD + chunk(TOKEN) + chunk(DONE) + STREAM_END
        writer.write(whole if stream else json_answer(b'{"text": "a"}'))

    return script


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_without_a_token_is_sent_once_more_and_no_more(stream: bool) -> None:
    """It may be what ends a replica: it must not end all of them."""
    served = []

    def dies(number: int) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
            served.append(number)
            if stream and number == 1:
                writer.write(STREAM_HEAD)
                await writer.drain()

        return script

    async with scripted_replica(dies(0)) as one, scripted_replica(dies(1)) as two, scripted_replica(dies(2)) as three:
        replicas = serving(0, one), serving(1, two), serving(2, three)
        async with fronted(*replicas) as (url, _), httpx.AsyncClient(base_url=url) as client:
            answer = await post(client, stream=stream)
        assert (answer.status_code, error_of(answer)["code"]) == (502, "replica_lost")
        assert [replica.in_flight for replica in replicas] == [0, 0, 0]
    assert served == [0, 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_whose_replica_is_lost_before_its_first_token_is_answered_by_another(stream: bool) -> None:
    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD if stream else b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
        await writer.drain()

    async with scripted_replica(dies) as first, scripted_replica(lives(stream=stream)) as second:
        replicas = serving(0, first), serving(1, second)
        async with fronted(*replicas) as (url, _), httpx.AsyncClient(base_url=url) as client:
            answer = await post(client, stream=stream)
    assert (answer.status_code, "a" in answer.text) == (200, True)
    assert replicas[0].progress.failures == 1


async def test_after_the_first_token_nothing_is_sent_elsewhere() -> None:
    served = []

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + chunk(TOKEN))
        await writer.drain()

    async def notes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        served.append(1)

    async with scripted_replica(dies) as first, scripted_replica(notes) as second:
        replicas = serving(0, first), serving(1, second)
        async with fronted(*replicas) as (url, _), httpx.AsyncClient(base_url=url) as client:
            answer = await post(client, stream=True)
    assert json.loads(answer.text.split("\n\n")[0].removeprefix("data: ")) == {"text": "a"}
    assert '"code":"replica_lost"' in answer.text
    assert served == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("garbage", [b"<html>", b"[1]"])
async def test_what_cannot_be_read_is_asked_of_another(stream: bool, garbage: bytes) -> None:
    async def babbles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        event = STREAM_HEAD + chunk(b"data: " + garbage + b"\n\n") + STREAM_END
        writer.write(event if stream else json_answer(garbage))

    async with scripted_replica(babbles) as first, scripted_replica(lives(stream=stream)) as second:
        replicas = serving(0, first), serving(1, second)
        async with fronted(*replicas) as (url, _), httpx.AsyncClient(base_url=url) as client:
            answer = await post(client, stream=stream)
            assert (answer.status_code, "a" in answer.text) == (200, True)
            replicas[1].life.happened(Event.DRAIN)
            answer = await post(client, stream=stream)
            assert (answer.status_code, error_of(answer)["code"]) == (502, "replica_lost")


async def test_a_replica_without_room_is_passed_over_before_the_first_token() -> None:
    """Two gateways took the same room: the replica decides."""
    asked = []

    async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        asked.append(0)
        refusal = b"HTTP/1.1 503 Service Unavailable\r\nx-sparktier-room: none\r\nContent-Length: 2\r\n\r\n{}"
        writer.write(refusal)

    async with scripted_replica(full) as first, scripted_replica(lives(stream=True)) as second:
        replicas = serving(0, first), serving(1, second)
        async with fronted(*replicas) as (url, _), httpx.AsyncClient(base_url=url) as client:
            for _ in range(3):
                assert (await post(client, stream=True)).status_code == 200
        assert [replica.users for replica in replicas] == [0, 0]
        assert replicas[0].progress.healthy(0.0)
    # Until it tells of room, it is not asked again.
    assert asked == [0]


async def test_a_stream_leaves_a_replica_that_hangs_before_its_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LEAST_S", 0.05)
    monkeypatch.setattr(progress, "STEPS", 0)

    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD)
        await writer.drain()
        assert await reader.read() == b""

    async with scripted_replica(hangs) as first, scripted_replica(lives(stream=True)) as second:
        replicas = serving(0, first), serving(1, second)
        async with fronted(*replicas) as (url, _), httpx.AsyncClient(base_url=url) as client:
            async with asyncio.timeout(30):
                answer = await post(client, stream=True)
            assert (answer.status_code, "a" in answer.text) == (200, True)
        assert [replica.in_flight for replica in replicas] == [0, 0]
    assert replicas[0].progress.streams == 0


async def test_no_request_leaves_a_replica_that_hangs_where_no_other_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LEAST_S", 0.05)
    monkeypatch.setattr(progress, "STEPS", 0)
    asked = []

    async def is_slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        asked.append(0)
        writer.write(STREAM_HEAD)
        await writer.drain()
        await asyncio.sleep(1.0)
        writer.write(chunk(TOKEN) + chunk(DONE) + STREAM_END)

    async with (
        scripted_replica(is_slow) as only,
        fronted(serving(0, only)) as (url, _),
        httpx.AsyncClient(base_url=url) as client,
    ):
        answer = await post(client, stream=True)
    assert (answer.status_code, "a" in answer.text, asked) == (200, True, [0])
