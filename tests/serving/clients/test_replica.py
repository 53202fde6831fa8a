"""The client of replicas: each way a connection fails is one of our errors, and a key goes with every request."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import pytest

from sparktier.configs.errors import ReplicaLost, ReplicaUnreachable
from sparktier.serving.clients.replica import CONNECT_TIMEOUT_S, AsyncReplicaClient, ReplicaClient
from sparktier.serving.clients.replica_keys import bearer
from support.gateways.replying_replica import replying
from support.scripted_replica import Script, json_answer, scripted_replica

STREAM = {"content-type": "text/event-stream"}
HALF = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\ndata: 1\n\n"


async def errors_of(url: str) -> list[ReplicaLost]:
    """Return what each way of asking at `url` raises."""
    async with AsyncReplicaClient() as client:
        with pytest.raises(ReplicaLost) as opened:
            await (await client.open(url, b"{}")).read()
        with pytest.raises(ReplicaLost) as asked:
            await client.ask("GET", url, timeout_s=5)
    with pytest.raises(ReplicaLost) as waited:
        await asyncio.to_thread(ReplicaClient(url, timeout_s=5).ask, "GET", "")
    return [opened.value, asked.value, waited.value]


def saying(*parts: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return script


@pytest.mark.parametrize("parts", [[], [b"no HTTP\r\n\r\n"], [HALF]], ids=["nothing", "no HTTP", "half"])
async def test_a_replica_that_breaks_off_is_one_of_our_errors(parts: list[bytes]) -> None:
    async with scripted_replica(saying(*parts)) as url:
        assert [type(error) for error in await errors_of(url)] == [ReplicaLost] * 3


async def test_a_replica_that_takes_no_connection_is_one_of_our_errors() -> None:
    with socket.socket() as taken:
        # Bound and not listening: refused.
        taken.bind(("127.0.0.1", 0))
        errors = await errors_of(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert [type(error) for error in errors] == [ReplicaUnreachable] * 3
    assert all(str(error).startswith("ClientConnectorError ") for error in errors)


async def test_a_connection_that_is_slow_to_come_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only connecting has a time limit: what is sent may take long."""
    limits: list[aiohttp.ClientTimeout] = []

    async def slow(self: aiohttp.TCPConnector, request: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:
        limits.append(timeout)
        raise aiohttp.ConnectionTimeoutError("slow")

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", slow)
    assert [type(error) for error in await errors_of("http://a")] == [ReplicaUnreachable] * 3
    assert limits == [aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S)] * 3


async def test_an_address_that_is_none_is_one_of_our_errors() -> None:
    async with AsyncReplicaClient() as client:
        with pytest.raises(ReplicaLost):
            await client.ask("GET", "http://[", timeout_s=5)


async def test_a_body_that_breaks_off_is_one_of_our_errors() -> None:
    async with scripted_replica(saying(HALF)) as url, AsyncReplicaClient() as client:
        answer = await client.open(url, b"{}")
        assert answer.is_event_stream
        chunks = answer.chunks()
        assert await anext(chunks) == b"data: 1\n\n"
        with pytest.raises(ReplicaLost):
            await anext(chunks)
        other = await client.open(url, b"{}")
        with pytest.raises(ReplicaLost):
            await other.read()


async def test_a_silent_body_says_so_and_loses_nothing() -> None:
    more = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        yield b"a"
        await more.wait()
        yield b"b"

    def reply(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=STREAM, content=waiting())

    async with replying(reply) as url, AsyncReplicaClient() as client:
        answer = await client.open(url, b"{}")
        chunks = answer.chunks(idle_s=0.01)
        assert [await anext(chunks) for _ in range(3)] == [b"a", b"", b""]
        more.set()
        assert b"".join([chunk async for chunk in chunks]) == b"b"
        answer.close()


async def test_a_whole_answer_has_a_time_limit_however_it_drips() -> None:
    async def dripping() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b"x"

    async with replying(lambda _: httpx.Response(200, content=dripping())) as url, AsyncReplicaClient() as client:
        with pytest.raises(ReplicaLost):
            await client.ask("GET", url, timeout_s=0.2)


async def test_each_request_has_a_connection_of_its_own() -> None:
    connections = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        nonlocal connections
        connections += 1
        writer.write(json_answer(b"{}"))
        await reader.read()

    async with scripted_replica(counted) as url, AsyncReplicaClient() as client:
        for _ in range(3):
            await client.ask("GET", url, timeout_s=5)
            (await client.open(url, b"{}")).close()
    assert connections == 6


async def test_the_key_goes_with_every_request_and_any_status_is_an_answer() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        return httpx.Response(418, json=[request.headers["authorization"], body])

    async with replying(answer) as url, AsyncReplicaClient(bearer("secret")) as client:
        asked = await client.ask("POST", f"{url}/b", timeout_s=5, json={"n": 1})
        opened = await client.open(f"{url}/b", b'{"n": 2}')
        assert (asked.status, json.loads(asked.content)) == (418, ["Bearer secret", {"n": 1}])
        assert (opened.status, json.loads(await opened.read())) == (418, ["Bearer secret", {"n": 2}])
        waiting = ReplicaClient(url, bearer("secret"), timeout_s=5)
        waited = await asyncio.to_thread(waiting.ask, "GET", "/b")
        assert (waited.status, json.loads(waited.text)) == (418, ["Bearer secret", None])
