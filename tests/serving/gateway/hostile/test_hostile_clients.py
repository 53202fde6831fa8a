"""Clients that mean harm, against a gateway in its own process: others are served meanwhile, and it stays small."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import yaml

from sparktier.serving.clients.replica_keys import bearer, new_keys_file
from sparktier.serving.gateway.grpc.service import SERVICE
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from support.gateways import http2_frames as h2
from support.gateways.gateway_command import RunningGateway, running_gateway
from support.gateways.grpc_calls import method
from support.gateways.probed_replica import ProbedReplica, probed_replica
from support.inputs.tenants import tenant_settings

ASKED = {"model": "tiny", "prompt": "Hi", "max_tokens": 2}
HELLO = pb.CompleteRequest(prompts=[pb.Prompt(text="Hi")])
WAIT = pb.CompleteRequest(prompts=[pb.Prompt(text="wait")])
MIB = 1 << 20
# The stand-in for the replica takes no more connections in time.
AT_ONCE = 20
CLIENTS = 50
OTHER, HOSTILE = "sk-other", "sk-hostile"
SHOWN, SHOWN_HOSTILE = ((("authorization", f"Bearer {key}"),) for key in (OTHER, HOSTILE))


@contextlib.asynccontextmanager
async def attacked(
    folder: Path, *, users_at_once: int = 200, **values: object
) -> AsyncIterator[tuple[RunningGateway, ProbedReplica]]:
    """Yield a gateway with a hostile tenant and another one, and its replica, which runs in this event loop."""
    async with probed_replica() as replica:
        settings = tenant_settings(folder, [OTHER, HOSTILE], ["standard"])
        tenants = yaml.safe_load((folder / "tenants.yaml").read_text())
        tenants["tenants"]["tenant-1"]["limits"] = {"users_at_once": users_at_once}
        (folder / "tenants.yaml").write_text(yaml.safe_dump(tenants))
        context = running_gateway(folder, replica.url, new_keys_file(folder), **settings, **values)
        gateway = await asyncio.to_thread(context.__enter__)
        try:
            yield gateway, replica
            assert gateway.process.poll() is None
        except BaseException:
            await asyncio.sleep(1)
            print("\n".join(gateway.output.read_text().splitlines()[-8:]))  # noqa: T201
            raise
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)


async def others_are_served(gateway: RunningGateway) -> None:
    """Ask over both transports, with new connections."""
    async with (
        httpx.AsyncClient(timeout=60, headers=bearer(OTHER)) as client,
        grpc.aio.insecure_channel(gateway.grpc_address) as channel,
    ):
        for _ in range(3):
            answer = await client.post(f"{gateway.url()}/v1/completions", json=ASKED)
            assert answer.status_code == 200, answer.text
            told = await method(channel, "Complete")(HELLO, metadata=SHOWN, timeout=60)
            assert told.choices[0].text == "ab"


def memory(gateway: RunningGateway) -> int:
    return psutil.Process(gateway.process.pid).memory_info().rss


def post(prompt: str) -> bytes:
    body = json.dumps(ASKED | {"prompt": prompt, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {HOSTILE}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def opened(gateway: RunningGateway, name: str = "port") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", gateway.ports[name])


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not met():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("streams", [100, pytest.param(2000, marks=pytest.mark.prove)])
async def test_idle_streams_of_http(tmp_path: Path, streams: int) -> None:
    bound = {"server.max_concurrent_requests": streams + 100}
    async with attacked(tmp_path, users_at_once=streams, **bound) as (gateway, replica):
        await others_are_served(gateway)
        before, held = memory(gateway), []
        for _ in range(0, streams, AT_ONCE):
            batch = [await opened(gateway) for _ in range(AT_ONCE)]
            for _, writer in batch:
                writer.write(post("wait"))
            for reader, _ in batch:
                begun = await asyncio.wait_for(reader.read(1 << 16), 120)
                assert b" 200 OK\r\n" in begun, f"with {replica.waiting} streams open: {begun!r}"
            held += batch
        assert replica.waiting == streams
        each = (memory(gateway) - before) // streams
        await others_are_served(gateway)
        print(f"{each} bytes of the gateway for each of {streams} streams of HTTP")  # noqa: T201
        assert streams < 1000 or each < 150_000
        for _, writer in held:
            writer.close()
        await until(lambda: replica.waiting == 0)
        await others_are_served(gateway)


@pytest.mark.prove
async def test_idle_streams_of_grpc(tmp_path: Path) -> None:
    streams = 2000
    bound = {"server.max_concurrent_requests": streams + 100}
    async with attacked(tmp_path, users_at_once=streams, **bound) as (gateway, replica):
        await others_are_served(gateway)
        before = memory(gateway)
        async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            calls = []
            for _ in range(0, streams, AT_ONCE):
                batch = [method(channel, "StreamComplete")(WAIT, metadata=SHOWN_HOSTILE) for _ in range(AT_ONCE)]
                for call in batch:
                    assert (await asyncio.wait_for(call.read(), 120)).deltas
                calls += batch
            assert replica.waiting == streams
            each = (memory(gateway) - before) // streams
            await others_are_served(gateway)
        print(f"{each} bytes of the gateway for each of {streams} streams of gRPC")  # noqa: T201
        assert each < 150_000
        await until(lambda: replica.waiting == 0)
        await others_are_served(gateway)


async def never_reads_http(gateway: RunningGateway) -> asyncio.StreamWriter:
    # The system holds megabytes for a client that doesn't read, unless it says how few.
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", gateway.ports["port"]))
    _, writer = await asyncio.open_connection(sock=client, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(post("flood"))
    return writer


async def sends_a_body_slowly(gateway: RunningGateway) -> asyncio.StreamWriter:
    _, writer = await opened(gateway)
    writer.write(post("Hi")[:-20])
    return writer


async def sends_a_head_slowly(gateway: RunningGateway) -> asyncio.StreamWriter:
    _, writer = await opened(gateway)
    writer.write(post("Hi")[:30])
    return writer


@pytest.mark.prove
@pytest.mark.parametrize("attack", [never_reads_http, sends_a_body_slowly, sends_a_head_slowly])
async def test_clients_of_http_that_stand_still(
    tmp_path: Path, attack: Callable[[RunningGateway], Awaitable[asyncio.StreamWriter]]
) -> None:
    async with attacked(tmp_path) as (gateway, replica):
        await others_are_served(gateway)
        before = memory(gateway)
        writers = [await attack(gateway) for _ in range(CLIENTS)]
        for _ in range(5):
            await others_are_served(gateway)
        if attack is never_reads_http:
            await until(lambda: replica.waiting == CLIENTS)
        grown = memory(gateway) - before
        print(f"{attack.__name__}: {grown // CLIENTS} bytes each")  # noqa: T201
        assert grown < CLIENTS * MIB
        for writer in writers:
            writer.close()
        await until(lambda: replica.waiting == 0)


@pytest.mark.prove
async def test_clients_of_grpc_that_never_read(tmp_path: Path) -> None:
    flood = pb.CompleteRequest(prompts=[pb.Prompt(text="flood")])
    async with attacked(tmp_path) as (gateway, replica):
        await others_are_served(gateway)
        before = memory(gateway)
        async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            calls = [method(channel, "StreamComplete")(flood, metadata=SHOWN_HOSTILE) for _ in range(CLIENTS)]
            await until(lambda: replica.waiting == CLIENTS)
            for _ in range(5):
                await others_are_served(gateway)
            grown = memory(gateway) - before
            print(f"never_reads_grpc: {grown // CLIENTS} bytes each")  # noqa: T201
            assert grown < 2 * CLIENTS * MIB
            for call in calls:
                call.cancel()
        await until(lambda: replica.waiting == 0)


PATH = f"/{SERVICE}/StreamComplete"
MESSAGE = WAIT.SerializeToString()
CALL = b"\x00" + len(MESSAGE).to_bytes(4, "big") + MESSAGE


def pings(number: int) -> bytes:
    return h2.frame(h2.PING, payload=number.to_bytes(8, "big")) * 20


def rapid_resets(number: int) -> bytes:
    stream = 2 * number + 1
    begun = h2.frame(h2.HEADERS, h2.END_HEADERS, stream, h2.call_headers(PATH, authorization=f"Bearer {HOSTILE}"))
    asked = h2.frame(h2.DATA, h2.END_STREAM, stream, CALL)
    return begun + asked + h2.frame(h2.RST_STREAM, 0, stream, h2.CANCEL)


def streams_without_end(number: int) -> bytes:
    stream = 2 * number + 1
    begun = h2.frame(h2.HEADERS, h2.END_HEADERS, stream, h2.call_headers(PATH, authorization=f"Bearer {HOSTILE}"))
    return begun + h2.frame(h2.DATA, h2.END_STREAM, stream, CALL)


def large_metadata(number: int) -> bytes:
    stream = 2 * number + 1
    parts = [h2.call_headers(PATH, **{f"x-{part}": "y" * 8000}) for part in range(8)]
    begun = h2.frame(h2.HEADERS, 0, stream, parts[0])
    more = [h2.frame(h2.CONTINUATION, 0, stream, h2.headers({f"x-{part}": "y" * 8000})) for part in range(1, 8)]
    return begun + b"".join(more) + h2.frame(h2.CONTINUATION, h2.END_HEADERS, stream, b"")


async def flood(gateway: RunningGateway, frames: Callable[[int], bytes], count: int) -> bytes:
    """Send `count` bursts while the gateway takes them, and return what it said."""
    reader, writer = await opened(gateway, "grpc_port")
    said = bytearray()

    async def listened() -> None:
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                said.extend(part)

    listening = asyncio.create_task(listened())
    writer.write(h2.PREFACE + h2.frame(h2.SETTINGS))
    with contextlib.suppress(ConnectionError):
        for number in range(count):
            writer.write(frames(number))
            if number % 10 == 0:
                await writer.drain()
                await asyncio.sleep(0)
        await writer.drain()
    await asyncio.wait({listening}, timeout=5)
    writer.close()
    listening.cancel()
    return bytes(said)


@pytest.mark.parametrize(
    ("frames", "count"),
    [
        (rapid_resets, 300),
        *(
            pytest.param(frames, 3000, marks=pytest.mark.prove)
            for frames in (pings, rapid_resets, streams_without_end, large_metadata)
        ),
    ],
)
async def test_floods_of_grpc(tmp_path: Path, frames: Callable[[int], bytes], count: int) -> None:
    async with attacked(tmp_path) as (gateway, replica):
        await others_are_served(gateway)
        before = memory(gateway)
        floods = [asyncio.create_task(flood(gateway, frames, count)) for _ in range(3)]
        await others_are_served(gateway)
        said = await asyncio.gather(*floods)
        grown = memory(gateway) - before
        print(f"{frames.__name__}: {grown // MIB} MiB more, {[len(each) for each in said]} bytes answered")  # noqa: T201
        if frames is pings:
            assert all(b"too_many_pings" in each for each in said)
        await until(lambda: replica.waiting == 0)
        await others_are_served(gateway)
        assert grown < 150 * MIB
