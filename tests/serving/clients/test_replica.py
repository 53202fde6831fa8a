"""The client of replicas: each way a connection fails is one of our errors, and a key goes with every request."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from sparktier.configs.errors import ReplicaError, ReplicaLost, ReplicaUnreachable
from sparktier.serving.clients.replica import AsyncReplicaClient, ReplicaClient
from sparktier.serving.clients.replica_keys import bearer

FAILURES = [
    (httpx.ConnectError("refused"), ReplicaUnreachable),
    (httpx.ConnectTimeout("slow"), ReplicaUnreachable),
    (httpx.ReadError("reset"), ReplicaLost),
    (httpx.RemoteProtocolError("closed"), ReplicaLost),
    (httpx.ReadTimeout("silent"), ReplicaLost),
    (httpx.WriteError("gone"), ReplicaLost),
]


def failing(error: Exception) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    return httpx.MockTransport(answer)


@pytest.mark.parametrize(("error", "ours"), FAILURES)
async def test_each_failure_is_one_of_our_errors(error: Exception, ours: type[ReplicaError]) -> None:
    async with AsyncReplicaClient(transport=failing(error)) as client:
        with pytest.raises(ReplicaLost) as opened:
            await client.open("http://a/b", b"{}")
        with pytest.raises(ReplicaLost) as asked:
            await client.ask("GET", "http://a/b", timeout_s=5)
    with pytest.raises(ReplicaLost) as waited:
        ReplicaClient("http://a", timeout_s=5, transport=failing(error)).ask("GET", "/b")
    assert [type(found.value) for found in (opened, asked, waited)] == [ours] * 3
    assert str(asked.value) == f"{type(error).__name__} {error}"


async def test_an_address_that_is_none_is_one_of_our_errors() -> None:
    async with AsyncReplicaClient() as client:
        with pytest.raises(ReplicaLost):
            await client.ask("GET", "http://[", timeout_s=5)


async def test_a_body_that_breaks_off_is_one_of_our_errors() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        raise httpx.ReadError("reset")

    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"content-type": "text/event-stream"}, content=broken())
    )
    async with AsyncReplicaClient(transport=transport) as client:
        answer = await client.open("http://a/b", b"{}")
        assert answer.is_event_stream
        chunks = answer.chunks()
        assert await anext(chunks) == b"data: 1\n\n"
        with pytest.raises(ReplicaLost):
            await anext(chunks)
        other = await client.open("http://a/b", b"{}")
        with pytest.raises(ReplicaLost):
            await other.read()


async def test_a_whole_answer_has_a_time_limit_however_it_drips() -> None:
    async def dripping() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b"x"

    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=dripping()))
    async with AsyncReplicaClient(transport=transport) as client:
        with pytest.raises(ReplicaLost):
            await client.ask("GET", "http://a/b", timeout_s=0.2)


async def test_the_key_goes_with_every_request_and_any_status_is_an_answer() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        return httpx.Response(418, json=[request.headers["authorization"], body])

    transport = httpx.MockTransport(answer)
    async with AsyncReplicaClient(bearer("secret"), transport=transport) as client:
        asked = await client.ask("POST", "http://a/b", timeout_s=5, json={"n": 1})
        opened = await client.open("http://a/b", b'{"n": 2}')
        assert (asked.status, json.loads(asked.content)) == (418, ["Bearer secret", {"n": 1}])
        assert (opened.status, json.loads(await opened.read())) == (418, ["Bearer secret", {"n": 2}])
    waited = ReplicaClient("http://a", bearer("secret"), timeout_s=5, transport=transport).ask("GET", "/b")
    assert (waited.status, json.loads(waited.text)) == (418, ["Bearer secret", None])
