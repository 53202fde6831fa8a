"""All listeners of the gateway in one process, on the event loop that it runs on: they serve, and end together."""

import asyncio
import socket
from typing import Any

import grpc
import httpx
import pytest
import uvloop

from sparktier.configs.errors import ConfigError
from sparktier.configs.settings.server import ServerSettings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway import listeners
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.http.internal import internal_app
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.telemetry.metrics import GatewayMetrics
from support.gateways.fronts import ASKED, EVERYBODY, serving
from support.gateways.grpc_calls import free_port, method
from support.scripted_replica import STREAM_HEAD, Script, chunk, json_answer, scripted_replica

TOKEN = chunk(b'data: {"choices":[{"index":0,"text":"a"}]}\n\n')


def settings() -> ServerSettings:
    return ServerSettings(port=free_port(), grpc_port=free_port(), internal_port=free_port(), shutdown_grace_s=0.5)


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(json_answer(b'{"id":"x"}'))


async def never_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(STREAM_HEAD + TOKEN)
    await reader.read()


async def served(script: Script, use: Any, server: ServerSettings) -> None:
    """Run `use` with the settings of a gateway before a replica that runs `script`, which stops while `use` goes on."""
    stopping = asyncio.Event()
    with listeners.held(server) as sockets:
        async with scripted_replica(script) as url, AsyncReplicaClient() as client:
            replica = serving(0, url)
            gateway = Gateway(ReplicaTable((replica,)), server, client, model="tiny", access=EVERYBODY)
            internal = internal_app(gateway.table, client, GatewayMetrics())
            serve = asyncio.create_task(listeners.serve(gateway, internal, sockets, stopping))
            await use(server, stopping)
            stopping.set()
            await asyncio.wait_for(serve, 20)
            assert replica.in_flight == 0


async def each_transport(server: ServerSettings, _: asyncio.Event) -> None:
    async with httpx.AsyncClient() as client, grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        posted = await client.post(f"http://127.0.0.1:{server.port}/v1/completions", json=ASKED, timeout=20)
        assert posted.json() == {"id": "x"}
        assert (await client.get(f"http://127.0.0.1:{server.internal}/metrics")).status_code == 200
        asked = pb.CompleteRequest(prompts=[pb.Prompt(text="Hello")])
        answer = await method(channel, "Complete")(asked, wait_for_ready=True, timeout=20)
        assert answer.id == "x"


async def streams_that_are_cut(server: ServerSettings, stopping: asyncio.Event) -> None:
    async with (
        httpx.AsyncClient() as client,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc}") as channel,
        client.stream(
            "POST", f"http://127.0.0.1:{server.port}/v1/completions", json=ASKED | {"stream": True}, timeout=20
        ) as http,
    ):
        lines = http.aiter_lines()
        assert "text" in await anext(lines)
        call = method(channel, "StreamComplete")(pb.CompleteRequest(prompts=[pb.Prompt(text="Hello")]))
        assert (await call.read()).deltas[0].text == "a"
        stopping.set()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call.read()
        assert '"code":"stopping"' in "".join([line async for line in lines])


@pytest.mark.parametrize(("script", "use"), [(answers, each_transport), (never_ends, streams_that_are_cut)])
def test_listeners_serve_and_end_together(script: Script, use: Any) -> None:
    uvloop.run(served(script, use, settings()))


@pytest.mark.parametrize("key", ["port", "grpc_port", "internal_port"])
def test_an_address_that_is_taken_is_found_at_once(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = settings().model_copy(update={key: taken.getsockname()[1]})
        with pytest.raises(ConfigError, match=rf"server\.{key}: .*in use"), listeners.held(server):
            pass


def test_what_is_wrong_with_tls_is_one_clear_error() -> None:
    async def never(server: ServerSettings, stopping: asyncio.Event) -> None:
        """Nothing is asked."""

    broken = settings().model_copy(update={"grpc_tls_cert_file": "/none.pem", "grpc_tls_key_file": "/none.pem"})
    with pytest.raises(ConfigError, match=r"server\.grpc_tls_key_file: must be a file that can be read"):
        uvloop.run(served(answers, never, broken))
